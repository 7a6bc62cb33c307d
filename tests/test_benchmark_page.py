"""docs/benchmarks.md and its pictures: made from JSON, and known to be stale when it changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tokensparse.analysis.benchmark.measure import SCHEMA
from tokensparse.analysis.benchmark.page import (
    PAGE,
    digest,
    digest_in,
    files,
    front,
    points,
    renew,
)
from tokensparse.analysis.benchmark.targets import targets_table

METAFILE = """
models:
- config: configs/x/a.py
  published: {top1: 79.8}
  measured: {top1: 81.25}
- config: configs/x/b.py
  published: {top1: 79.5}
  measured: null
"""


def row(name: str, kind: str, img_s: float, macs: int, **more: Any) -> dict[str, Any]:
    """One row as the benchmark writes it."""
    return (
        dict(
            name=name,
            kind=kind,
            config=f"configs/x/{name}.py",
            batch=8,
            dtype="fp32",
            compiled=False,
            img_s=img_s,
            latency_ms=dict(p50=8e3 / img_s, p95=9e3 / img_s, p10=1.0, p90=2.0),
            peak_mem_bytes=3 * 2**20,
            macs=macs,
            tokens=[64, 32],
            compile_s=None,
            mfu=None,
        )
        | more
    )


def data() -> dict[str, Any]:
    """A file of two models at two batch sizes."""
    timm = dict(ratio=0.961, valid=False, reason="a is slow", timm="attention: SDPA")
    dense = row("a", "dense", 100.0, 4_000_000_000, against_timm=timm)
    reduced = row(
        "b",
        "config",
        180.0,
        2_000_000_000,
        speedup=1.8,
        speedup_range=dict(p10=1.7, p90=1.9),
        mac_ratio=2.0,
        efficiency=None,
        void="a is slow",
        shares={"reduce EViT": 0.03, "hints": 0.01, "all": 0.04},
    )
    rows = [dense, reduced, {**dense, "batch": 1}, {**reduced, "batch": 1}]
    return dict(
        schema=SCHEMA,
        device="AMD EPYC",
        versions=dict(torch="2"),
        threads=1,
        mode="infer",
        shape=[64, 64],
        compile=None,
        rounds=3,
        warmup=1,
        clock="cpu",
        note="shared",
        failed=None,
        rows=rows,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one benchmark and a JSON of another tool."""
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "configs/x").mkdir(parents=True)
    (tmp_path / "configs/x/metafile.yml").write_text(METAFILE)
    (tmp_path / "docs/results/benchmark_one.json").write_text(json.dumps(data()))
    (tmp_path / "docs/results/benchmark_other.json").write_text("{}")
    return tmp_path


def test_page_and_picture_are_made_and_checked(root: Path) -> None:
    picture = "docs/results/benchmark_one.png"
    assert [path.name for path in files(root)] == ["benchmark_one.json"]
    assert renew(root, check=True) == [PAGE, picture]
    assert not (root / PAGE).exists()
    assert renew(root) == [] and renew(root, check=True) == []
    text = (root / PAGE).read_text()
    assert "## one" in text and "benchmark_other" not in text and "shared" in text
    assert "| [b](../configs/x/b.py) | 8 | fp32 | 180.0 | 44.4 | 50.0 | 3.0 | 2.000 |" in text
    assert "1.80 (1.70..1.90) | 2.00 | void | 4.0% |" in text
    assert "0.961 of timm's speed" in text and "efficiency is void: a is slow" in text
    assert (root / picture).read_bytes().startswith(b"\x89PNG")


def test_callables_alone_have_a_table_and_no_picture(root: Path) -> None:
    alone = data()
    alone["rows"] = [row("f", "call", 9.0, 0, tokens=[])]
    (root / "docs/results/benchmark_one.json").write_text(json.dumps(alone))
    assert renew(root) == [] == renew(root, check=True)
    assert "f" in (root / PAGE).read_text() and "![" not in (root / PAGE).read_text()
    (root / "docs/results/benchmark_one.json").write_text('{"schema": ')
    with pytest.raises(ValueError, match=r"benchmark_one.json is no whole JSON file"):
        renew(root)


def test_a_changed_figure_makes_both_stale(root: Path) -> None:
    renew(root)
    changed = data()
    changed["rows"][1]["img_s"] = 190.0
    (root / "docs/results/benchmark_one.json").write_text(json.dumps(changed))
    picture = "docs/results/benchmark_one.png"
    assert renew(root, check=True) == [PAGE, picture]
    renew(root)
    (root / "configs/x/metafile.yml").write_text(METAFILE.replace("79.5", "79.6"))
    assert renew(root, check=True) == [picture]
    (root / picture).write_bytes((root / picture).read_bytes()[:40])
    assert digest_in(root / picture) is None and digest_in(root / "absent.png") is None


def test_the_picture_shows_the_largest_batch() -> None:
    shown, batch = points(data(), {"configs/x/a.py": 80.0})
    assert batch == 8 and [p.name for p in shown] == ["a", "b"]
    assert [p.top1 for p in shown] == [80.0, None] and shown[0].tokens == 48
    assert shown[0].dense and not shown[1].dense
    assert digest(data(), {}) != digest(data(), {"configs/x/a.py": 80.0})


def test_pareto_front() -> None:
    assert front([(1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (3.0, 1.0), (0.5, 9.0)]) == [0, 1, 3]
    assert front([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]


def test_targets_say_what_misses_and_what_was_not_measured(tmp_path: Path) -> None:
    """Bounds from both sides; a void efficiency counts for nothing; files without rows do."""
    ways = {way: dict(time_over_ours=2.1, memory_of_ours=1.2) for way in ("unfold", "dense")}
    ways["released"] = dict(time_over_ours=1.9, memory_of_ours=0.5)
    other = dict(device="AMD EPYC", shape=[64, 96], backbone=ways)
    (tmp_path / "benchmark_stvit_r.json").write_text(json.dumps(other))
    slow = data() | dict(rows=data()["rows"][:1])
    slow["rows"][0]["name"] = "deit-s_in1k"
    reduced = data()["rows"][1] | dict(name="evit_x", batch=32, efficiency=0.84)
    void = dict(name="tome_x", batch=32, efficiency=None, speedup=0.98)
    slow["rows"] += [reduced, reduced | dict(efficiency=0.8996), reduced | void]
    slow["rows"].append(reduced | void | dict(batch=1))
    (tmp_path / "benchmark_deit-s_cpu.json").write_text(json.dumps(slow))
    table = targets_table(tmp_path)
    assert "| at least 2 | 1.900 | 1.900 | 1 of 1: 1.900 (64 x 96, [AMD EPYC]" in table
    assert "| at most 1.1 | 1.200 | 1.200 | 1 of 1: 1.200" in table
    assert "| at least 1.5 | 2.100 | 2.100 | none of 1 |" in table
    assert "| at least 0.85 | 0.840 | 0.900 | 1 of 2: 0.840 (evit_x, batch 32, fp32, [" in table
    assert "ToMe r = 13 on DeiT-S: efficiency from batch 32 | at least 0.85 |  |  | not" in table
    assert "| at least 1 | 0.980 | 0.980 | 1 of 1: 0.980 (tome_x, batch 1, fp32" in table
    assert "| at least 0.97 | 0.961 | 0.961 | 1 of 1: 0.961 (batch 8, fp32" in table
