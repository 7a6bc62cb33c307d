"""tools/analyze.py: a table, and a JSON list in the order given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tokensparse.analysis.baseline import dense_of

ROOT = Path(__file__).parents[1]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/analyze.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_json_beside_the_dense_baseline(tmp_path: Path) -> None:
    configs = ["configs/dense/deit-t_in1k.py", "configs/sparseswin/sparseswin-t_in100.py"]
    done = run(*configs, "--json", str(tmp_path / "cost.json"))
    assert done.returncode == 0, done.stderr
    assert "sparseswin-t_in100" in done.stdout and "GMACs" in done.stdout
    rows = json.loads((tmp_path / "cost.json").read_text())
    assert [row["config"] for row in rows] == configs
    deit, sparse = rows
    assert deit["params"] == 5_717_416 and deit["flops"] == 2 * deit["macs"]
    assert deit["dense"]["macs"] == deit["macs"] and deit["tokens"] == [196] * 12
    assert round(sparse["macs"] / 1e9, 3) == 4.396
    assert sparse["tokens"][-2:] == [49, 49] and sparse["dense"]["macs"] > sparse["macs"]


def test_any_shape_and_a_missing_config() -> None:
    done = run("configs/dense/swin-t_in1k.py", "--shape", "200", "264")
    assert done.returncode == 0 and "200x264" in done.stdout
    done = run("configs/none.py")
    assert done.returncode != 0 and "none.py" in done.stderr and "Traceback" not in done.stderr


def test_baselines() -> None:
    plan = dict(every=dict(type="ToMe", r=13))
    vit = dict(type="tokensparse.VisionTransformer", arch="tiny", plan=plan, img_size=64)
    assert dense_of(vit) == dict(type="tokensparse.VisionTransformer", arch="tiny", img_size=64)
    swin = dict(type="STViTSwin", arch="small", num_tokens=4, out_indices=(0, 3))
    dense = dict(type="tokensparse.SwinTransformer", arch="small", out_indices=(0, 3))
    assert dense_of(swin) == dense
    with pytest.raises(ValueError, match="none of tokensparse"):
        dense_of(dict(type="ResNet"))
