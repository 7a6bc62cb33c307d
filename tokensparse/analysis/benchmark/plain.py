"""Tables of our way beside the plain way, from what the tools that compare them wrote."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Data = Mapping[str, Any]
WAYS = {
    "ours": "ours",
    "unfold": "projecting after unfolding, same kernel",
    "released": "the released way",
    "dense": "dense Swin",
}


def plain_tables(folder: Path) -> str:
    """The part of the page that compares ways of computing the same.

    Args:
        folder: ``docs/results``.

    Returns:
        Markdown; files that are not there are left out.
    """
    parts = []
    for pattern, made in (
        ("benchmark_sparseswin.json", _sparseswin),
        ("benchmark_stvit_r*.json", _stvit_r),
        ("attention_forms.json", _forms),
    ):
        for path in sorted(folder.glob(pattern)):
            data = json.loads(path.read_text())
            where = f"{data['device']}, {data['threads']} thread(s), torch {data['torch']}"
            file = f"[{path.name}](results/{path.name})"
            parts += [*made(data), "", f"{where}. File: {file}.", ""]
    return "\n".join(parts)


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _sparseswin(data: Data) -> Iterator[str]:
    yield "## SparseSwin's training step against plain PyTorch"
    yield ""
    yield (
        f"`python tools/benchmark_sparseswin.py`: torchvision's stages and a plain SparTa, the "
        f"same weights and precision, {data['size']} px, batch {data['batch']}, {data['rounds']} "
        "rounds."
    )
    yield ""
    heads = ("precision", "ours (ms)", "plain (ms)", "speed-up", "peak, ours / plain")
    yield from _table(
        heads,
        (
            (
                row["precision"],
                f"{row['ours_ms']:.0f}",
                f"{row['plain_ms']:.0f}",
                f"{row['speedup']:.2f}",
                f"{row['memory_ratio']:.3f}",
            )
            for row in data["rows"]
        ),
    )


def _stvit_r(data: Data) -> Iterator[str]:
    size = " x ".join(map(str, data["shape"]))
    yield f"## STViT-R-Swin-{data['arch'].capitalize()} at {size} against the naive ways"
    yield ""
    yield (
        f"`python tools/benchmark_stvit_r.py`: same weights, in turn, {data['rounds']} rounds; the "
        f"dumbbell alone on a map of {' x '.join(map(str, data['grid']))}."
    )
    yield ""
    heads = ("part", "way", "seconds", "of our time", "peak (MiB)", "GMACs")
    yield from _table(
        heads,
        (
            (
                part,
                WAYS[way],
                f"{row['seconds']:.2f}",
                f"{row['time_over_ours']:.2f}",
                f"{row['peak_mib']:.1f}",
                f"{row['gmacs']:.1f}" if "gmacs" in row else "",
            )
            for part in ("backbone", "dumbbell")
            for way, row in data[part].items()
        ),
    )


def _forms(data: Data) -> Iterator[str]:
    yield "## Forms of attention"
    yield ""
    yield (
        "`python tools/measure_attention_forms.py`: milliseconds of one call; "
        '`attention="auto"` takes the faster.'
    )
    yield ""
    heads = ("shape", "dtype", "mode", "bias", "eager (ms)", "SDPA (ms)", "faster")
    yield from _table(
        heads,
        (
            (
                row["shape"],
                row["dtype"],
                "train" if row["training"] else "infer",
                "learned" if row["learned_bias"] else "none",
                f"{row['ms']['eager']:.2f}",
                f"{row['ms']['sdpa']:.2f}",
                row["fastest"],
            )
            for row in data["rows"]
        ),
    )
