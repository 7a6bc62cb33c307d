"""Export a config's classifier or backbone: ``python tools/export.py CONFIG OUT.onnx``.

OUT ends in .onnx (ONNX, by torch's dynamo exporter) or .pt2 (torch.export). The file is run beside
the model, and put in place when both agree.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

import tokensparse  # noqa: F401  registers everything
from tokensparse.checkpoint import add_allow_globals, allow_globals
from tokensparse.config_check import check_config, read_config
from tokensparse.engine.runner import read_checkpoint
from tokensparse.export import Exported, deployable, export_model, format_of, load_weights


def batch_of(text: str) -> Any:
    """``dynamic`` or a count."""
    if text != "dynamic" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}; expected 'dynamic' or a number from 1")
    return text if text == "dynamic" else int(text)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config; detectors give their backbone")
    parser.add_argument("out", help="file to write, .onnx or .pt2")
    parser.add_argument("--checkpoint", help="weights of a training with this config")
    parser.add_argument("--format", choices=["onnx", "torch"], help="default: by the suffix")
    parser.add_argument("--shape", nargs=2, type=int, metavar=("H", "W"), help="pixels")
    parser.add_argument("--batch", type=batch_of, default="dynamic", help="'dynamic' or a number")
    add_allow_globals(parser)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides")
    return parser.parse_args()


def export(args: argparse.Namespace) -> Exported:
    """Build, load, export."""
    format_of(Path(args.out), args.format)
    state = read_checkpoint(args.checkpoint)["state_dict"] if args.checkpoint else None
    cfg = read_config(args.config, args.cfg_options)
    check_config(cfg)
    torch.manual_seed(0)
    part = deployable(cfg)
    if state is not None:
        load_weights(part, state, args.checkpoint)
    if args.shape and min(args.shape) < 1:
        raise ValueError(f"--shape {args.shape[0]} {args.shape[1]}: expected pixels, at least 1")
    size = tuple(args.shape) if args.shape else part.size
    about = {
        **part.about,
        "config": Path(args.config).name,
        "weights": Path(args.checkpoint).name if args.checkpoint else "random",
    }
    return export_model(part.model, args.out, size, args.batch, args.format, about)


def show(made: Exported, checkpoint: str | None) -> None:
    """What was written."""
    ends = [", ".join(_signature(*pair) for pair in e.items()) for e in (made.inputs, made.outputs)]
    batches = " and ".join(str(b) for b in dict.fromkeys(made.batches))
    print(f"{made.path}: {made.size / 1e6:.1f} MB, {' -> '.join(ends)}")
    print(f"run by {made.runtime} at batch {batches}: at most {made.difference:.1e} from eager")
    if checkpoint is None:
        print("weights: RANDOM, for no --checkpoint was given; they do for timing alone")


def _signature(name: str, shape: tuple[int | str, ...]) -> str:
    return f"{name} ({', '.join(str(side) for side in shape)})"


def main() -> None:
    """Export, say what was written."""
    args = parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    try:
        with allow_globals(*args.allow_globals):
            made = export(args)
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("TOKENSPARSE_TRACEBACK"):
            raise
        told = str(error) if not isinstance(error, ImportError) else str(error).splitlines()[0]
        sys.exit(f"{type(error).__name__}: {told}")
    show(made, args.checkpoint)


if __name__ == "__main__":
    main()
