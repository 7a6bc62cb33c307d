"""docs/reliability.md: made from a run, its guards those that exist, its faults those tested."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reliability import tiny_config

from tokensparse.config_check import check_config
from tokensparse.engine.runner import SAFETY

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reliability.md"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools/make_reliability_page.py"
    spec = importlib.util.spec_from_file_location("make_reliability_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REPORT = """<testsuites><testsuite>
<testcase name="a"><properties><property name="fault" value="x|y"/>
<property name="promised" value="p"/><property name="happened" value="h"/></properties></testcase>
<testcase name="b"/>{more}</testsuite></testsuites>"""


def cost() -> dict[str, Any]:
    return json.loads((ROOT / "docs/results/reliability_cost.json").read_text())


def test_rows_come_from_the_report(tool: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(more=""))
    assert tool.rows(report) == [("x|y", "p", "h")]
    assert "| x/y | p | h |" in tool.page(tool.rows(report), cost())
    report.write_text(REPORT.format(more='<testcase name="c"><failure/></testcase>'))
    with pytest.raises(ValueError, match="c failed"):
        tool.rows(report)


def test_the_page_is_of_this_tool_and_these_tests(tool: ModuleType) -> None:
    text = PAGE.read_text()
    found = text[text.index("| fault |") :].splitlines()[2:]
    faults = [tuple(row.strip("| ").split(" | ")) for row in found]
    assert text == tool.page(faults, cost())
    notes = sum(
        len(re.findall(r"recorder\(record_property\)", path.read_text()))
        for path in (ROOT / "tests").glob("test_reliability_*.py")
    )
    assert len(faults) >= notes - 1  # this file names it, too


def test_every_guard_is_explained(tool: ModuleType) -> None:
    named = " ".join(" ".join(row) for row in tool.GUARDS)
    for name in SAFETY:
        assert f"default_hooks.{name}" in named
    for file in re.findall(r"`(\w+\.py)`", named):
        assert (ROOT / "tokensparse/engine" / file).is_file()


def test_what_the_page_says_to_set_can_be_set(tmp_path: Path) -> None:
    for name in SAFETY:
        cfg = tiny_config(tmp_path)
        cfg.default_hooks[name] = None
        cfg.train_dataloader.timeout = 60
        check_config(cfg)
    cfg.default_hooks.bad_images = dict(type="tokensparse.BadImagesHook", budget=0.01)
    check_config(cfg)
    cfg.default_hooks.bad_images.bugdet = 0.01
    with pytest.raises(ValueError, match="did you mean 'budget'"):
        check_config(cfg)
