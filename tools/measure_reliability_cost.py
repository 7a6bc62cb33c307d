"""What the guards of a run cost per step: with them and without, in turn, in one process.

python tools/measure_reliability_cost.py configs/stvit/stvit-deit_digits.py
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner as MMEngineRunner

import tokensparse  # noqa: F401  registers everything
from tokensparse.config_check import check_config
from tokensparse.engine.runner import Runner

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "reliability_cost.json"


class Unguarded(Runner):
    """mmengine's own loops, loaders and hooks under our console."""

    register_default_hooks = MMEngineRunner.register_default_hooks
    register_hook = MMEngineRunner.register_hook
    build_train_loop = MMEngineRunner.build_train_loop


def stepper(
    kind: type[Runner], config: str, folder: Path, clip: dict[str, float] | None
) -> Callable[[], None]:
    """A function that fetches a batch and trains on it.

    Args:
        kind: the runner's class.
        config: path of the config.
        folder: work dir.
        clip: ``optim_wrapper.clip_grad``.
    """
    cfg = Config.fromfile(config)
    check_config(cfg)
    cfg.optim_wrapper.clip_grad = clip
    cfg.work_dir, cfg.experiment_name = str(folder / kind.__name__), f"{kind.__name__}-{clip}"
    cfg.default_hooks.pop("logger", None)
    cfg.visualizer = dict(type="Visualizer", vis_backends=[])
    runner = kind.from_cfg(cfg)
    loop = runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    for name in ("before_run", "before_train", "before_train_epoch"):
        runner.call_hook(name)
    runner.model.train()
    batches = iter(loop.dataloader)

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loop.dataloader)
            batch = next(batches)
        loop.run_iter(0, batch)

    return step


def paired(steps: Sequence[Callable[[], None]], rounds: int) -> list[tuple[float, float]]:
    """Seconds of CPU of both steps, round by round, in alternating order."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    found = []
    for turn in range(rounds):
        took = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            begun = clock()
            steps[which]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            took[which] = clock() - begun
        found.append((took[0], took[1]))
    return found


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="paths of configs whose data are there")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    rows = []
    for config, clip in product(args.configs, (dict(max_norm=1.0), None)):
        with tempfile.TemporaryDirectory() as folder:
            steps = [
                stepper(kind, config, Path(folder), clip and dict(clip))
                for kind in (Runner, Unguarded)
            ]
            for step in steps * 2:
                step()
            found = paired(steps, args.rounds)
        ours, theirs = (statistics.median(pair[i] for pair in found) * 1e3 for i in (0, 1))
        ratio = statistics.median(a / b for a, b in found)
        row = dict(guarded_ms=round(ours, 1), mmengine_ms=round(theirs, 1), ratio=round(ratio, 3))
        rows.append(dict(config=config, clip_grad=clip is not None, **row))
        print(rows[-1], flush=True)
    written = dict(
        device=device or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        clock="wall time" if torch.cuda.is_available() else "CPU time of the process",
        rounds=args.rounds,
        rows=rows,
    )
    args.out.write_text(json.dumps(written, indent=1) + "\n")
    print("now: python tools/make_reliability_page.py REPORT")


if __name__ == "__main__":
    main()
