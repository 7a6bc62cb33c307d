"""Two gloo processes: the same training as one, one end for all, restarts that resume."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reliability import recorder, tiny_config

from tokensparse.engine.checkpoint_reading import read_checkpoint

ROOT = Path(__file__).parents[1]
STRIKE = 4

HOOKS = '''
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
import torch

@HOOKS.register_module(force=True)
class Tell(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs["loss"].detach()
        if runner.distributed:
            torch.distributed.all_reduce(loss)
            loss /= torch.distributed.get_world_size()
        if runner.rank == 0:
            with open(Path(runner.work_dir, "losses"), "a") as f:
                f.write(f"{runner.iter + 1} {float(loss):.9f}\\n")

@HOOKS.register_module(force=True)
class Strike(Hook):
    """At a step, once: rank 1 kills itself, gets SIGTERM, or has a loss that is not finite."""
    def __init__(self, how, step):
        self.how, self.step = how, step
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        mark = Path(runner.work_dir, "struck")
        if runner.rank != 1 or runner.iter + 1 != self.step or mark.exists():
            return
        mark.touch()
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.how == "nan":
            model = runner.model.module
            model.register_forward_hook(self.spoil, prepend=True)
    def spoil(self, model, inputs, outputs):
        return {**outputs, "loss_more": outputs["loss"].detach() * float("nan")}
'''


def launch(
    folder: Path, processes: int, strike: str = "", restarts: int = 0, resume: bool = False
) -> tuple[subprocess.CompletedProcess, float]:
    """Train 10 steps of 8 images by ``tools/train.py``; gives the result and the seconds."""
    folder.mkdir(exist_ok=True)
    (folder / "two_process_hooks.py").write_text(HOOKS)
    config = folder / "config.py"
    cfg = tiny_config(folder / "work", train_cfg=dict(max_epochs=2))
    cfg.model.data_preprocessor = dict(type="tokensparse.ImagePreprocessor")
    cfg.model.backbone.drop_path_rate = 0.0  # what draws on the device draws per process
    cfg.train_dataloader.batch_size = 8 // processes
    cfg.custom_imports = dict(imports=["tokensparse", "two_process_hooks"])
    cfg.custom_hooks = [dict(type="Tell")]
    if strike:
        cfg.custom_hooks.append(dict(type="Strike", how=strike, step=STRIKE))
    cfg.dump(config)
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    command += [str(ROOT / "tools/train.py"), str(config)]
    command += ["--launcher", "pytorch"] if processes > 1 else []
    command += ["--resume"] if resume else []
    path = os.pathsep.join([str(folder), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, cwd=ROOT)
    return done, time.monotonic() - begun


def losses(folder: Path) -> dict[int, float]:
    pairs = [line.split() for line in (folder / "work/losses").read_text().splitlines()]
    return {int(step): float(loss) for step, loss in pairs}


def final(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "work/iter_10.pth")["state_dict"]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)


def test_two_processes_are_one_and_restarts_resume(
    tmp_path: Path, record_property: Callable
) -> None:
    one, _ = launch(tmp_path / "one", 1)
    assert one.returncode == 0, one.stderr[-2000:]
    two, _ = launch(tmp_path / "two", 2, "kill", restarts=1, resume=True)
    assert two.returncode == 0, two.stderr[-4000:]
    assert (tmp_path / "two/work/struck").exists()
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert expected.keys() == found.keys() == set(range(1, 11))
    gap = max(abs(expected[s] - found[s]) for s in expected)
    difference = largest_difference(final(tmp_path / "one"), final(tmp_path / "two"))
    assert gap < 1e-4 and difference < 1e-3
    recorder(record_property)(
        "two gloo processes; one killed at step 4, torchrun --max-restarts 1 --resume",
        "loss curve and weights of one process within float noise",
        f"losses differ by at most {gap:.0e}, weights by {difference:.0e} after 10 steps",
    )


def test_a_killed_rank_ends_the_other(tmp_path: Path, record_property: Callable) -> None:
    done, took = launch(tmp_path, 2, "kill")
    assert done.returncode != 0
    assert "another process of this run ended" in done.stderr or "Signal 9" in done.stderr
    newest = read_checkpoint(tmp_path / "work/iter_3.pth")
    assert newest["meta"]["iter"] == 3
    lines = re.findall(r"(another process of this run ended);", done.stderr)
    told = lines[0] if lines else "torchrun tells Signal 9 (SIGKILL)"
    recorder(record_property)(
        "one of two processes killed",
        "the other ends within 60 s with one clear line",
        f"both ended, {took:.0f} s after the start: {told}",
    )
    assert took < 900  # launch() would have raised: nothing waited for a dead peer


def test_nan_on_one_rank_and_a_signal_to_one_rank(
    tmp_path: Path, record_property: Callable
) -> None:
    done, _ = launch(tmp_path / "nan", 2, "nan")
    assert done.returncode != 0
    assert done.stderr.count("iteration 4: the norm of the gradients is nan") == 2  # every process
    assert re.search(r"process 1: loss \d", done.stderr)
    assert not re.search(r"process 0: loss \d", done.stderr)
    assert not (tmp_path / "nan/work/iter_4.pth").exists()
    done, _ = launch(tmp_path / "term", 2, "term")
    assert done.returncode != 0
    saved = read_checkpoint(tmp_path / "term/work/interrupted.pth")["meta"]
    assert saved["iter"] == 4 and len(saved["resume"]["random"]) == 2
    recorder(record_property)(
        "loss NaN on one of two processes; SIGTERM to one of two",
        "no process takes the step; all stop at the same step with a checkpoint",
        "both ended at step 4 and named process 1's images; interrupted.pth after step 4",
    )
