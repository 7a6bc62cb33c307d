"""Released weights to a checkpoint of ours: ``python tools/convert_checkpoint.py SOURCE IN OUT``.

A source that ends in ``-full`` is a whole detector: OUT then holds backbone, neck and heads, for
``load_from`` or for a test. All others give a classifier, or a backbone for ``init_cfg``.
IN is read without running anything that it brings along; OUT is written whole or not at all.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import tokensparse  # noqa: F401  registers everything
from tokensparse.checkpoint import SOURCES, add_allow_globals, allow_globals, read_state, translate
from tokensparse.released import load_released


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=sorted(SOURCES), metavar="SOURCE", help="whose weights")
    parser.add_argument("weights", metavar="IN", help="safetensors, or a file of torch.save")
    parser.add_argument("out", metavar="OUT", help="*.safetensors, or *.pth")
    parser.add_argument("--num-heads", type=int, help="of a ViT, which no tensor tells")
    parser.add_argument("--sparta-heads", type=int, help="of SparseSwin's last blocks")
    add_allow_globals(parser)
    return parser.parse_args()


def mapped(source: str, theirs: dict[str, Tensor]) -> list[str]:
    """A line for every tensor of IN and for every name that is ours."""
    family = SOURCES[source]
    whole = family.dense and any(name.startswith("backbone.") for name in theirs)
    lines = []
    for name, value in theirs.items():
        ours = translate({name: value}, family.rules).state
        if whole and not ours:
            ours = translate({name.removeprefix("backbone."): value}, family.rules).state
        target = next(iter(ours), "(joined with others)")
        if family.heads is not None:
            target = f"backbone.{target}" if ours else target
        if whole and not name.startswith("backbone."):
            target = name if family.heads else "(no part of the backbone: left out)"
        lines.append(f"{name} {tuple(value.shape)} -> {target}")
    return lines


def write(state: dict[str, Tensor], out: Path) -> None:
    """Write to a second name, then rename."""
    partial = out.with_name(out.name + ".partial")
    try:
        if out.suffix == ".safetensors":
            save_file({k: v.contiguous() for k, v in state.items()}, partial)
        else:
            torch.save({"state_dict": state}, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    """Convert."""
    args = parse_args()
    out = Path(args.out)
    if out.suffix not in (".safetensors", ".pth"):
        sys.exit(f"OUT={out}: expected a name that ends in .safetensors or .pth")
    if not out.parent.is_dir() or out.is_dir():
        sys.exit(f"OUT={out}: expected a file in a folder that exists")
    told: dict[str, Any] = {"num_heads": args.num_heads, "sparta_heads": args.sparta_heads}
    try:
        with allow_globals(*args.allow_globals):
            model = load_released(
                args.source, args.weights, **{k: v for k, v in told.items() if v is not None}
            )
            theirs = read_state(args.weights)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    lines = mapped(args.source, theirs)
    print("\n".join(lines))
    state = model.state_dict()
    heads = SOURCES[args.source].heads
    if heads is not None:
        state = {**{f"backbone.{k}": v for k, v in state.items()}, **heads(theirs)}
    try:
        write(state, out)
    except (OSError, RuntimeError, SafetensorError) as error:
        sys.exit(f"OUT={out} was not written, what was there is untouched: {error}")
    print(f"{len(lines)} tensors of {args.weights} -> {len(state)} tensors in {out}")


if __name__ == "__main__":
    main()
