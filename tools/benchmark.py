"""Time reduced models against their dense baselines and timm's, in turn in one process.

``python tools/benchmark.py CONFIG... [--batch 1 8 32 128] [--dtype bf16] [--out FILE.json]``

Efficiency is the speed-up over the dense model divided by the ratio of multiply-accumulates: 1.0
means that every operation saved became time. Where our dense model runs below 0.97 of timm's, the
efficiency is void. Times are medians of rounds in which every model runs once: process CPU time
where torch has one thread (as OMP_NUM_THREADS=1 gives), else wall clock, events on a GPU.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis.benchmark import BenchmarkError, Settings, benchmark, line_up, write_json
from tokensparse.config_check import check_config, read_config


def parse_args() -> argparse.Namespace:
    """What to measure, and how."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("configs", nargs="*", metavar="CONFIG", help="classifiers, or detectors' backbones")
    add("--baseline", metavar="CONFIG", help="default: each config's backbone without its plan")
    add(
        "--baseline-attention",
        metavar="FORM",
        help="hold each config against itself with this form of attention, such as eager",
    )
    add("--call", nargs="+", default=[], metavar="MODULE:NAME", help="anything else to time")
    add("--batch", nargs="+", type=int, default=[1, 8, 32, 128], help="images per call")
    add("--shape", nargs=2, type=int, metavar=("H", "W"), help="pixels; default: the configs' own")
    add("--dtype", nargs="+", default=["fp32"], help="fp32, bf16, fp16")
    add(
        "--compile",
        nargs="?",
        const="default",
        metavar="MODE",
        help="compile ours; modes of torch.compile, such as reduce-overhead (CUDA graphs)",
    )
    add(
        "--timm",
        nargs="+",
        default=None,
        help="forms of timm's dense model: eager, compiled, none; default: as ours",
    )
    add("--mode", default="infer", help="infer, or train (forward and backward)")
    add("--device", default=None, help="default: cuda where there is one, else cpu")
    add("--rounds", type=int, default=20, help="timed calls of each model")
    add("--warmup", type=int, default=3, help="calls of each before")
    add("--clock", default="auto", help="wall, cpu or events")
    add("--operations", action="store_true", help="also say which operations take the time")
    add("--note", default="", help="kept in the JSON, such as what else ran on the machine")
    add("--out", metavar="FILE.json", help="file to write")
    return parser.parse_args()


def checked(path: str) -> Config:
    """A config that passes the strict check.

    Raises:
        FileNotFoundError: naming the nearest config that is there.
        ValueError: a key or type that means nothing.
    """
    cfg = read_config(path)
    check_config(cfg)
    return cfg


def timm_forms(args: argparse.Namespace) -> list[str]:
    """Which forms of timm's models run."""
    if args.timm is None:
        return ["compiled" if args.compile else "eager"]
    for form in args.timm:
        if form not in ("eager", "compiled", "none"):
            raise ValueError(f"--timm {form}: expected eager, compiled or none")
    return [form for form in args.timm if form != "none"]


def settings_of(args: argparse.Namespace, shape: tuple[int, int]) -> Settings:
    """The options as settings of the benchmark."""
    import torch

    return Settings(
        batches=tuple(dict.fromkeys(args.batch)),
        shape=shape,
        dtypes=tuple(dict.fromkeys(args.dtype)),
        mode=args.mode,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        compile=args.compile,
        rounds=args.rounds,
        warmup=args.warmup,
        clock=args.clock,
        operations=args.operations,
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check everything, then build, then measure.

    Raises:
        ValueError: an option or a config that means nothing.
        BenchmarkError: a model that does not run.
    """
    if not args.configs and not args.call:
        raise ValueError("nothing to measure: name at least one CONFIG, or --call MODULE:NAME")
    if args.out and not Path(args.out).resolve().parent.is_dir():
        raise ValueError(f"--out {args.out}: the folder {Path(args.out).parent} does not exist")
    timm = timm_forms(args)
    settings_of(args, tuple(args.shape or (224, 224))).check()
    configs = {path: checked(path) for path in args.configs}
    baseline = None if args.baseline is None else (args.baseline, checked(args.baseline))
    subjects, shape = line_up(
        configs,
        baseline,
        args.call,
        args.shape,
        args.compile is not None,
        timm,
        args.baseline_attention,
    )
    found = benchmark(subjects, settings_of(args, shape))
    return {**found, "note": args.note}


def show(found: dict[str, Any]) -> None:
    """A table on screen, and what it cannot say."""
    rows, shape = found["rows"], "x".join(str(side) for side in found["shape"])
    title = (
        f"{found['device']}, {found['threads']} threads, {shape}, {found['mode']}, "
        f"clock: {found['clock']}, median of {found['rounds']} rounds in turn"
    )
    table = Table(title=title)
    heads = ("model", "batch", "dtype", "img/s", "p50 ms", "p95 ms", "peak MiB", "GMACs")
    for head in (*heads, "speed-up", "p10..p90", "MAC ratio", "efficiency"):
        table.add_column(head, justify="left" if head == "model" else "right")
    for row in rows:
        latency, between = row["latency_ms"], row.get("speedup_range")
        table.add_row(
            row["name"] + (" (compiled)" if row["compiled"] and row["kind"] != "timm" else ""),
            str(row["batch"]),
            row["dtype"],
            f"{row['img_s']:.1f}",
            f"{latency['p50']:.1f}",
            f"{latency['p95']:.1f}",
            f"{row['peak_mem_bytes'] / 2**20:.1f}",
            "" if row["macs"] is None else f"{row['macs'] / 1e9:.3f}",
            number(row.get("speedup")),
            f"{between['p10']:.2f}..{between['p90']:.2f}" if between else "",
            number(row.get("mac_ratio")),
            "void" if row.get("void") else number(row.get("efficiency")),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for row in rows:
        for line in remarks(row):
            print(f"{row['name']}, batch {row['batch']}, {row['dtype']}: {line}")


def number(value: float | None) -> str:
    """Two digits, or nothing."""
    return "" if value is None else f"{value:.2f}"


def remarks(row: dict[str, Any]) -> list[str]:
    """What a row says beyond the table."""
    lines = []
    timm = row.get("against_timm")
    if timm and timm["ratio"] is not None:
        lines.append(f"{timm['ratio']:.3f} of timm's speed ({timm['timm']})")
    elif timm:
        lines.append(f"not held against timm's: {timm['reason']}")
    if row.get("void"):
        lines.append(f"efficiency is void: {row['void']}")
    if row["compile_s"] is not None:
        lines.append(f"first call, compiling: {row['compile_s']:.1f} s")
    if row["mfu"] is not None:
        lines.append(f"MFU {row['mfu']:.1%}")
    if row.get("shares"):
        parts = ", ".join(f"{name} {share:.1%}" for name, share in row["shares"].items())
        lines.append(f"share of an eager forward pass: {parts}")
    if row.get("operations_ms"):
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in row["operations_ms"].items())
        lines.append(f"ms by operation: {parts}")
    return lines


def main() -> None:
    """Measure, show, write."""
    args = parse_args()
    try:
        found = run(args)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    show(found)
    if args.out:
        write_json(args.out, found)
        print(f"written: {args.out}")
    if found["failed"]:
        sys.exit(f"{BenchmarkError.__name__}: {found['failed']}; the rows before it are kept")


if __name__ == "__main__":
    main()
