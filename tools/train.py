"""Train a classifier: ``python tools/train.py configs/sparseswin_cls.py``."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

import tokensparse  # noqa: F401  registers everything
from tokensparse.checkpoint import add_allow_globals, allow_globals
from tokensparse.config_check import check_config, read_config
from tokensparse.engine.endings import one_clear_message
from tokensparse.engine.runner import Runner, part

AUTOCAST = ("tokensparse.AutocastOptimWrapper", "AmpOptimWrapper")


def parse_args() -> argparse.Namespace:
    """The flags that mmdet's users know."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config")
    parser.add_argument(
        "--work-dir", help="folder of logs and checkpoints; default work_dirs/<config>"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="go on from the newest valid checkpoint of the work folder, or from the one named",
    )
    add_allow_globals(parser)
    parser.add_argument("--amp", action="store_true", help="train in bf16 autocast")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="overrides, for example model.head.num_classes=5 train_cfg.max_epochs=3",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's overrides, checked strictly."""
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir or cfg.get("work_dir") is None:
        cfg.work_dir = args.work_dir or str(Path("work_dirs", Path(args.config).stem))
    if getattr(args, "amp", False) and cfg.optim_wrapper.get("type") != "AmpOptimWrapper":
        cfg.optim_wrapper.type = AUTOCAST[0]
        cfg.optim_wrapper.precision = "bf16"
    check_config(cfg)
    return cfg


def train(args: argparse.Namespace) -> None:
    """Check, build, run; nothing of the run is left behind."""
    cfg = load_config(args)
    if args.resume is None and cfg.get("resume"):
        args.resume = cfg.get("load_from") or "auto"
    cfg.resume = args.resume is not None
    if args.resume not in (None, "auto"):
        cfg.load_from = args.resume
    runner = Runner.from_cfg(cfg)
    runner.resume_newest = args.resume == "auto"
    runner.train()


def main() -> None:
    """Train."""
    args = parse_args()
    with one_clear_message(), allow_globals(*args.allow_globals):
        train(args)
        part()


if __name__ == "__main__":
    main()
