"""Measure a checkpoint: ``python tools/test.py <config> <checkpoint>``."""

import argparse
import json
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process

import tokensparse  # noqa: F401  registers everything
from tokensparse.backbones import inner_model
from tokensparse.checkpoint import add_allow_globals, allow_globals
from tokensparse.config_check import check_config, read_config
from tokensparse.dense.views import test_on_views
from tokensparse.engine.endings import one_clear_message
from tokensparse.engine.runner import Runner, part


def parse_args() -> argparse.Namespace:
    """The flags that mmdet's users know."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config")
    parser.add_argument("checkpoint", help="path of the weights")
    parser.add_argument("--work-dir", help="folder of the log; default work_dirs/<config>")
    parser.add_argument("--out", help="write the metrics to this JSON file")
    parser.add_argument("--show-dir", help="draw predictions into this folder")
    parser.add_argument(
        "--tta", action="store_true", help="test on several views: the config's tta_pipeline"
    )
    add_allow_globals(parser)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def draw_into(cfg: Config, folder: Path) -> None:
    """Let mmdet's or mmseg's visualisation hook draw every prediction below a folder."""
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None:
        raise ValueError(
            f"--show-dir {folder}: the config names no default_hooks.visualization of mmdet or "
            "mmseg, which would draw; tools/visualize.py draws the tokens of a classifier"
        )
    hook.draw = True
    if hook.type == "DetVisualizationHook":
        hook.test_out_dir = str(folder)
    else:
        cfg.visualizer.save_dir = str(folder)


def main() -> None:
    """Test."""
    args = parse_args()
    with one_clear_message(), allow_globals(*args.allow_globals):
        cfg = read_config(args.config, args.cfg_options)
        cfg.launcher = args.launcher
        if args.work_dir or cfg.get("work_dir") is None:
            cfg.work_dir = args.work_dir or str(Path("work_dirs", Path(args.config).stem))
        check_config(cfg)
        if args.out and not Path(args.out).resolve().parent.is_dir():
            raise ValueError(f"--out {args.out}: there is no folder {Path(args.out).parent}")
        if args.out and Path(args.out).is_dir():
            raise ValueError(f"--out {args.out}: is a folder; expected a file to write")
        if args.show_dir:
            draw_into(cfg, Path(args.show_dir).resolve())
        cfg.replace_head = False  # what is tested is the checkpoint's own head
        cfg.load_from = args.checkpoint
        if "backbone" in (inner := inner_model(cfg.model)):
            inner.backbone.init_cfg = None
        if args.tta:
            test_on_views(cfg)
        metrics = Runner.from_cfg(cfg).test()
        if args.out and is_main_process():
            Path(args.out).write_text(json.dumps(metrics, indent=1, default=float) + "\n")
        part()


if __name__ == "__main__":
    main()
