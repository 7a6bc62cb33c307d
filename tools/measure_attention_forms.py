"""Which form of attention is fastest where: fills the table in ``tokensparse/ops/attention.py``.

Times eager, SDPA and (with ``--compiled``) compiled attention in turn in one process, on shapes of
Swin windows and ViT sets; queries, keys and values lie in memory as one projection leaves them.
Writes docs/results/attention_forms.json with the device it ran on.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokensparse.analysis import compare, device_name
from tokensparse.ops.attention import FormChoice, attend

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: (B, W, h, n, D) and the bias that goes with it: None, learned, or a fixed mask.
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "Swin-T stage 1, 224 px": ((4, 64, 3, 49, 32), "learned"),
    "Swin-T stage 3, 224 px": ((8, 4, 12, 49, 32), "learned"),
    "DeiT-S, 224 px": ((8, 1, 6, 197, 64), "none"),
    "few tokens": ((64, 1, 16, 9, 32), "none"),
}


def call_of(
    form: str, shape: tuple[int, ...], kind: str, dtype: torch.dtype, training: bool, device: str
) -> Callable[[], None]:
    """One forward, and a backward while training."""
    batch, windows, heads, tokens, width = shape
    qkv = torch.randn(batch, windows, tokens, 3, heads, width, device=device, dtype=dtype)
    qkv.requires_grad_(training)
    bias = None
    if kind == "learned":
        bias = torch.randn(1, 1, shape[2], shape[3], shape[3], device=device)
        bias.requires_grad_(training)

    def call() -> None:
        with torch.set_grad_enabled(training):
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
            out = attend(q, k, v, bias, form=form)[0]  # type: ignore[arg-type]
        if training:
            out.sum().backward()
            qkv.grad = None

    return call


def measure(device: str, forms: list[str], rounds: int) -> list[dict[str, Any]]:
    """Medians in milliseconds of every case."""
    rows = []
    for short, dtype in DTYPES.items():
        for training in (False, True):
            for name, (shape, kind) in SHAPES.items():
                calls = {f: call_of(f, shape, kind, dtype, training, device) for f in forms}
                times = compare(calls, rounds, warmup=3)
                ms = {form: round(1e3 * t.median, 3) for form, t in times.items()}
                choice = FormChoice(device, short, training, training and kind == "learned")
                best = min(ms, key=lambda form: ms[form])
                rows.append(dict(shape=name, **choice._asdict(), ms=ms, fastest=best))
                print(f"{name:24} {short} training={training!s:5} {ms} -> {best}")
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="also the compiled form")
    parser.add_argument("--out", default="docs/results/attention_forms.json")
    args = parser.parse_args()
    forms = ["eager", "sdpa", *(["compiled"] if args.compiled else [])]
    rows = measure(args.device, forms, args.rounds)
    head = dict(
        device=device_name(args.device), threads=torch.get_num_threads(), torch=torch.__version__
    )
    Path(args.out).write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
