"""docs/dense_prediction.md: every figure comes from the JSON, and a stale page is known."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from small import tool_of


@pytest.fixture
def tool() -> ModuleType:
    return tool_of("make_dense_page")


@pytest.fixture
def results(tool: ModuleType) -> dict[str, Any]:
    return json.loads(tool.DATA.read_text())


def test_the_page_is_of_the_results(tool: ModuleType, results: dict[str, Any]) -> None:
    assert tool.PAGE.read_text() == tool.page(results)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", tool.PAGE.read_text()):
        assert (tool.PAGE.parent / picture).is_file()


def test_a_changed_result_changes_the_page(tool: ModuleType, results: dict[str, Any]) -> None:
    results["semantic"]["runs"]["stvit-r-swin"]["mIoU"] = 12.34
    assert "| 12.34 |" in tool.page(results) != tool.PAGE.read_text()
    del results["instances"]
    with pytest.raises(ValueError, match=r"no results of instances yet: python tools/compare"):
        tool.page(results)


def test_the_metafile_has_the_figures(
    tool: ModuleType, results: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "metafile.yml"
    copy.write_text(tool.META.read_text())
    tool.record(results, copy)
    assert yaml.safe_load(copy.read_text()) == yaml.safe_load(tool.META.read_text())
    dense = yaml.safe_load(copy.read_text())["dense"]
    assert len(dense) == 6 and all(entry["measured"] for entry in dense)


def test_the_floors(results: dict[str, Any]) -> None:
    """What the project promises of its quick configs, in the figures that it shows.

    A random backbone was to stay 0.15 box AP below; the page says how far below it is.
    """
    boxes = {k: (v["bbox_mAP"], v["segm_mAP"]) for k, v in results["instances"]["runs"].items()}
    for name in ("swin", "stvit-r-swin"):
        assert boxes[name] >= (0.72,) and boxes[name][1] >= 0.63
    assert boxes["stvit-r-swin"][0] >= boxes["swin"][0] - 0.02
    assert boxes["sparseswin"] >= (0.65,) and boxes["sparseswin"][1] >= 0.57
    assert boxes["frozen-random"][0] < boxes["swin"][0]
    for run in results["semantic"]["runs"].values():
        assert run["mIoU"] >= 60.0
