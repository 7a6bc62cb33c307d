"""What the guards of a run cost per step: with them and without, in turn, in one process.

python tools/measure_reliability_cost.py configs/stvit/stvit-deit_digits.py
"""

import argparse
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
PAGE = ROOT / "docs" / "results" / "reliability_cost.md"


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
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    made = (
        "Made by `tools/measure_reliability_cost.py`: a training step, loader included, with the "
        "guards and with mmengine's own loops and hooks, in turn in one process; medians."
    )
    lines = [
        f"{made}\n\n",
        "| config | guarded | mmengine's | ratio (median of pairs) |\n|---|---|---|---|\n",
    ]
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
        how = "clip_grad" if clip else "no clip_grad"
        lines.append(f"| `{config}`, {how} | {ours:.1f} ms | {theirs:.1f} ms | {ratio:.3f} |\n")
        print(lines[-1], end="", flush=True)
    threads = torch.get_num_threads()
    clock = "wall time" if torch.cuda.is_available() else "CPU time of the process"
    where = f"{device or platform.machine()}, {threads} threads, torch {torch.__version__}"
    lines.append(f"\n{args.rounds} steps of each, {clock}; {where}.\n")
    args.out.write_text("".join(lines))


if __name__ == "__main__":
    main()
