"""Measure models beside their dense baselines, a whole list in one command, on a CPU or a GPU.

``python tools/benchmark_list.py`` runs ``tools/benchmark.py`` for every job below, one after the
other, and writes ``docs/results/benchmark_<job>_<device>.json``; then run ``tools/make_tables.py``.
Let nothing else run on the machine: what shares the cores disturbs the ratios.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
DEIT_S = (
    "configs/stvit/stvit-deit-s_16tok_in1k.py",
    "configs/evit/evit_deit-s_k0.7_in1k.py",
    "configs/tome/tome_deit-s_r13_in1k.py",
    *("--baseline", "configs/dense/deit-s_in1k.py"),
)
TRAINED = (
    "configs/sparseswin/sparseswin-t_in1k.py",
    "configs/stvit/stvit-swin-t_9tok_in1k.py",
    "configs/stvit/stvit-r-swin-s_in1k.py",
)


class Job(NamedTuple):
    """One file of results.

    Attributes:
        arguments: of ``tools/benchmark.py``.
        cpu: batches and rounds on a CPU; nothing leaves the job out there.
        cuda: the same on a GPU.
    """

    arguments: tuple[str, ...]
    cpu: str = ""
    cuda: str = ""


JOBS = {
    "deit-s": Job(
        DEIT_S,
        "--batch 1 8 32 --rounds 9 --warmup 1",
        "--batch 1 8 32 256 --dtype fp32 bf16",
    ),
    "deit-b": Job(
        (
            "configs/stvit/stvit-deit-b_16tok_in1k.py",
            *("--baseline", "configs/dense/deit-b_in1k.py"),
        ),
        "--batch 1 32 --rounds 5 --warmup 1",
        "--batch 1 8 32 256 --dtype fp32 bf16",
    ),
    "deit-s_compiled": Job(
        (*DEIT_S, "--compile"),
        "--batch 8 --rounds 9 --warmup 1",
        "--batch 32 256 --dtype fp32 bf16",
    ),
    "deit-s_graphs": Job((*DEIT_S, "--compile", "reduce-overhead"), "", "--batch 1 --dtype bf16"),
    "swin-t": Job(
        ("configs/dense/swin-t_in1k.py", "configs/stvit/stvit-swin-t_9tok_in1k.py"),
        "--batch 1 8 --dtype fp32 bf16 --rounds 25 --warmup 2 --operations",
        "--batch 1 32 256 --dtype fp32 bf16 --operations",
    ),
    "swin-t_compiled": Job(
        ("configs/dense/swin-t_in1k.py", "--compile"),
        "--batch 8 --dtype fp32 bf16 --rounds 9 --warmup 1",
        "--batch 32 256 --dtype fp32 bf16",
    ),
    "train": Job(
        (*TRAINED, "--mode", "train", "--baseline-attention", "eager", "--timm", "none"),
        "--batch 4 --rounds 15 --warmup 1",
        "--batch 64 --dtype fp32 bf16",
    ),
    "stvit-r-swin-s_800x1280": Job(
        ("configs/stvit/stvit-r-swin-s_cascade-mask-rcnn_ms-3x_coco.py", "--timm", "none"),
        "--batch 1 --rounds 5 --warmup 1",
        "--batch 1 4 --dtype fp32 bf16",
    ),
}


def command(name: str, device: str) -> list[str]:
    """How a job is run; empty where it is none for the device."""
    job = JOBS[name]
    given = job.cuda if device == "cuda" else job.cpu
    if not given:
        return []
    out = f"docs/results/benchmark_{name}_{device}.json"
    head = [sys.executable, "tools/benchmark.py", *job.arguments, "--device", device]
    return [*head, *given.split(), "--out", out]


def main() -> None:
    """Run the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where it is")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--note", default="", help="kept in the files: what else ran, say")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    failed = []
    for name in args.only:
        line = command(name, device)
        if not line:
            continue
        print("+", " ".join(["python", *line[1:]]), flush=True)
        if not args.dry_run:
            note = ["--note", args.note] if args.note else []
            failed += [name] * (subprocess.run([*line, *note], cwd=ROOT).returncode != 0)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the others are measured")
    print("now: python tools/make_tables.py")


if __name__ == "__main__":
    main()
