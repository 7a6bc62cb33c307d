"""What models cost beside their dense baselines: parameters, multiply-accumulates, tokens.

``python tools/analyze.py CONFIG... [--shape H W] [--layer-norm] [--json FILE]``
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis import count
from tokensparse.analysis.baseline import backbone_of, bare_model, dense_of, shape_of
from tokensparse.analysis.published import layer_norm_operations
from tokensparse.config_check import check_config, read_config


def analyze(path: str, shape: list[int] | None, layer_norm: bool = False) -> dict[str, Any]:
    """Costs of one config and of its dense baseline.

    Args:
        path: config.
        shape: (rows, columns) in pixels, or None for the config's own.
        layer_norm: add LayerNorm to the multiply-accumulates in fvcore's way.

    Returns:
        ``config``, ``shape``, ``params``, ``macs``, ``flops`` (2 x), ``tokens`` by block, and the
        same of the baseline under ``dense``.
    """
    cfg = read_config(path)
    check_config(cfg)
    backbone = backbone_of(cfg, path)
    size = shape_of(backbone, shape)
    found: dict[str, Any] = {"config": path, "shape": list(size)}
    for name, target in (("own", found), ("dense", found.setdefault("dense", {}))):
        with torch.device("meta"):
            model = bare_model(cfg, dense_of(backbone) if name == "dense" else backbone)
        cost = count(model, size)
        target["params"] = cost.params
        target["macs"] = cost.macs
        if layer_norm:
            target["layer_norm"] = layer_norm_operations(model, size)
            target["macs"] += target["layer_norm"]
        target["flops"] = 2 * target["macs"]
        target["tokens"] = list(cost.tokens)
    return found


def runs(tokens: list[int]) -> str:
    """``196 x 4, 16 x 8``: equal neighbours counted."""
    parts: list[list[int]] = []
    for value in tokens:
        if parts and parts[-1][0] == value:
            parts[-1][1] += 1
        else:
            parts.append([value, 1])
    return ", ".join(f"{value} x {times}" for value, times in parts)


def show(rows: list[dict[str, Any]]) -> None:
    """A table on screen."""
    title = "one image, one forward pass; GMACs of matrix products and convolutions"
    if "layer_norm" in rows[0]:
        title += ", and LayerNorm in fvcore's way"
    table = Table(title=title)
    for head in ("config", "shape", "params (M)", "GMACs", "GFLOPs", "of dense", "tokens by block"):
        table.add_column(head)
    for row in rows:
        shape = "x".join(str(side) for side in row["shape"])
        for name, cost in ((Path(row["config"]).stem, row), ("  dense", row["dense"])):
            table.add_row(
                name,
                shape,
                f"{cost['params'] / 1e6:.2f}",
                f"{cost['macs'] / 1e9:.3f}",
                f"{cost['flops'] / 1e9:.3f}",
                f"{cost['macs'] / row['dense']['macs']:.1%}",
                runs(cost["tokens"]),
            )
    width = None if sys.stdout.isatty() else 140
    Console(width=width).print(table)


def main() -> None:
    """Analyze, show, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--shape", nargs=2, type=int, metavar=("H", "W"), help="pixels")
    parser.add_argument(
        "--layer-norm",
        action="store_true",
        help="count LayerNorm too, as fvcore does: 5 for every value, 4 without affine parameters",
    )
    parser.add_argument("--json", help="file to write: a list in the order given")
    args = parser.parse_args()
    if args.shape and min(args.shape) < 1:
        sys.exit(f"--shape {args.shape[0]} {args.shape[1]}: expected pixels, at least 1")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        sys.exit(f"--json {args.json}: there is no folder {Path(args.json).parent}")
    rows = []
    for path in args.configs:
        try:
            rows.append(analyze(path, args.shape, args.layer_norm))
        except (ValueError, OSError, KeyError, AttributeError, SyntaxError) as error:
            sys.exit(f"{path}: {type(error).__name__}: {error}")
    show(rows)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
