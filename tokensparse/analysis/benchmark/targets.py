"""What the project wants of its speed, beside what the benchmark files of docs/results say."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokensparse.analysis.benchmark.measure import SCHEMA

Data = Mapping[str, Any]


class Found(NamedTuple):
    """One measured figure.

    Attributes:
        value: the figure.
        where: batch and precision, or the size.
        file: name of its file.
        device: that it ran on.
    """

    value: float
    where: str
    file: str
    device: str


class Target(NamedTuple):
    """One wish.

    Attributes:
        text: what is wanted, of which models.
        wanted: the bound.
        files: pattern of the files' names.
        figures: value and place of every figure of a file that the wish is about.
        most: the bound is an upper one.
    """

    text: str
    wanted: float
    files: str
    figures: Callable[[Data], Iterator[tuple[float, str]]]
    most: bool = False

    def missed(self, value: float) -> bool:
        """Whether a figure, rounded to three digits, is on the wrong side."""
        value = round(value, 3)
        return value > self.wanted if self.most else value < self.wanted


def _of_rows(
    field: str, name: str = "", batches: Callable[[int], bool] = lambda batch: True
) -> Callable[[Data], Iterator[tuple[float, str]]]:
    """A field of the rows of our reduced models whose name starts so."""

    def figures(data: Data) -> Iterator[tuple[float, str]]:
        for row in data.get("rows", ()):
            own = row["kind"] == "config" and row["name"].startswith(name)
            if own and batches(row["batch"]) and row.get(field) is not None:
                yield row[field], f"{row['name']}, batch {row['batch']}, {row['dtype']}"

    return figures


def _of_timm(name: str, dtypes: Sequence[str]) -> Callable[[Data], Iterator[tuple[float, str]]]:
    """Our dense model's speed over timm's under the same compile setting."""

    def figures(data: Data) -> Iterator[tuple[float, str]]:
        for row in data["rows"]:
            found = row.get("against_timm") or {}
            if row["name"].startswith(name) and row["dtype"] in dtypes and found.get("ratio"):
                yield found["ratio"], f"batch {row['batch']}, {row['dtype']}"

    return figures


def _of_ways(way: str, field: str) -> Callable[[Data], Iterator[tuple[float, str]]]:
    """The STViT-R backbone against another way."""

    def figures(data: Data) -> Iterator[tuple[float, str]]:
        yield data["backbone"][way][field], " x ".join(map(str, data["shape"]))

    return figures


def _large(batch: int) -> bool:
    return batch >= 32


def _one(batch: int) -> bool:
    return batch == 1


ABOUT = """## What is wanted, and what was measured

Worst and best of all figures in the files; what misses the bound is listed in full. Rounds differ
by several percent (see the ranges in the tables), so a ratio within a percent of 1 says that two
models are equally fast.
"""
WHERE = """
**Where the time goes.** Nearly all of it is matrix products (`addmm` under "ms by operation"). At
batch 1 a few tokens meet whole weight matrices, which are read from memory however few they are:
so `addmm` falls by less than its multiply-accumulates, and efficiency is lowest there. The next
part is the step itself (column "plan").

**What was tried, and stayed:** windows are cut before the projection where nothing is padded (fewer
channels move); the form of attention is chosen from measurements, by precision; keys are laid out
before the product; what happens at a block is looked up once. **What did not pay on a CPU:**
gathering windows of keys token by token (key windows of one strip ask one block instead).
"""
ALL = ("fp32", "bf16", "fp16")
TARGETS = (
    Target(
        "STViT-DeiT-S, 16 tokens: efficiency from batch 32",
        0.90,
        "benchmark_deit-s_c*.json",
        _of_rows("efficiency", "stvit-deit-s", _large),
    ),
    Target(
        "STViT-DeiT-B, 16 tokens: efficiency from batch 32",
        0.92,
        "benchmark_deit-b_c*.json",
        _of_rows("efficiency", "stvit-deit-b", _large),
    ),
    Target(
        "EViT 0.7 on DeiT-S: efficiency from batch 32",
        0.85,
        "benchmark_deit-s_c*.json",
        _of_rows("efficiency", "evit", _large),
    ),
    Target(
        "ToMe r = 13 on DeiT-S: efficiency from batch 32",
        0.85,
        "benchmark_deit-s_c*.json",
        _of_rows("efficiency", "tome", _large),
    ),
    Target(
        "reduced models at batch 1: speed over dense",
        1.0,
        "benchmark_*.json",
        _of_rows("speedup", "", _one),
    ),
    Target(
        "dense DeiT: speed over timm's",
        0.97,
        "benchmark_deit-*.json",
        _of_timm("deit", ALL),
    ),
    Target(
        "dense Swin-T on a CPU: speed over timm's",
        1.0,
        "benchmark_swin-t*_cpu.json",
        _of_timm("swin-t", ALL),
    ),
    Target(
        "dense Swin-T on a GPU, bf16: speed over timm's",
        1.3,
        "benchmark_swin-t*_cuda.json",
        _of_timm("swin-t", ("bf16",)),
    ),
    Target(
        "training step: speed over the same model with eager attention",
        1.0,
        "benchmark_train_c*.json",
        _of_rows("speedup"),
    ),
    Target(
        "training step: peak memory over the same model's with eager attention",
        1.0,
        "benchmark_train_c*.json",
        _of_rows("peak_mem_ratio"),
        most=True,
    ),
    Target(
        "STViT-R-Swin-S: speed over projecting after unfolding, same kernel",
        1.5,
        "benchmark_stvit_r*.json",
        _of_ways("unfold", "time_over_ours"),
    ),
    Target(
        "STViT-R-Swin-S: speed over the released way",
        2.0,
        "benchmark_stvit_r*.json",
        _of_ways("released", "time_over_ours"),
    ),
    Target(
        "STViT-R-Swin-S: speed over dense Swin-S",
        1.2,
        "benchmark_stvit_r*.json",
        _of_ways("dense", "time_over_ours"),
    ),
    Target(
        "STViT-R-Swin-S's settings for COCO: speed over dense Swin-S",
        1.2,
        "benchmark_stvit-r-swin-s_800x1280_c*.json",
        _of_rows("speedup"),
    ),
    Target(
        "STViT-R-Swin-S: peak memory over dense Swin-S's",
        1.1,
        "benchmark_stvit_r*.json",
        _of_ways("dense", "memory_of_ours"),
        most=True,
    ),
)


def measured(target: Target, folder: Path) -> list[Found]:
    """Every figure that a target is about, worst first."""
    found = []
    for path in sorted(folder.glob(target.files)):
        data = json.loads(path.read_text())
        if data.get("schema") == SCHEMA or "backbone" in data:
            found += [Found(*one, path.name, data["device"]) for one in target.figures(data)]
    return sorted(found, key=lambda one: one.value, reverse=target.most)


def targets_table(folder: Path) -> str:
    """Markdown: every target, the worst figure, and what misses it.

    Args:
        folder: ``docs/results``.
    """
    lines = [
        ABOUT,
        "| wanted | bound | worst | best | missed |",
        "|---|---:|---:|---:|---|",
    ]
    for target in TARGETS:
        found = measured(target, folder)
        sign = "at most" if target.most else "at least"
        cells = [target.text, f"{sign} {target.wanted:g}"]
        if not found:
            lines.append("| " + " | ".join([*cells, "", "", "not measured, or void"]) + " |")
            continue
        missed = [one for one in found if target.missed(one.value)]
        said = "; ".join(
            f"{one.value:.3f} ({one.where}, [{one.device}](results/{one.file}))" for one in missed
        )
        count = f"{len(missed)} of {len(found)}: {said}" if missed else f"none of {len(found)}"
        worst, best = (f"{one.value:.3f}" for one in (found[0], found[-1]))
        lines.append("| " + " | ".join([*cells, worst, best, count]) + " |")
    return "\n".join([*lines, WHERE])
