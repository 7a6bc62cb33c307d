"""tools/benchmark_list.py: every line of it is one that tools/benchmark.py takes."""

import sys
from pathlib import Path

import pytest
from small import tool_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_job_of_the_list_can_be_run(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and configs of ``tools/benchmark_list.py`` are those that the tool takes."""
    sheet, tool = tool_of("benchmark_list"), tool_of("benchmark")
    lines = [line for name in sheet.JOBS if (line := sheet.command(name, device))]
    assert len(lines) >= 7
    for line in lines:
        monkeypatch.setattr(sys, "argv", line[1:])
        args = tool.parse_args()
        tool.settings_of(args, (224, 224))
        assert all((ROOT / path).is_file() for path in [*args.configs, args.baseline] if path)
        assert args.out.endswith(f"_{device}.json") and tool.timm_forms(args) is not None
