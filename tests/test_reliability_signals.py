"""SIGTERM, Ctrl-C and the lock of the work dir."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from reliability import EMA, QUIET, VALIDATION, recorder, same, start, tiny_config, weights

from tokensparse.engine.checkpoints import newest_valid
from tokensparse.engine.signals import FILE, StoppedError
from tokensparse.engine.work_dir_lock import WorkDirInUseError, locked


class Send(Hook):
    """Sends this process a signal before the work of a step, or in its validation."""

    def __init__(self, number: int, step: int, in_validation: bool = False) -> None:
        self.number, self.step, self.in_validation = number, step, in_validation

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 == self.step and not self.in_validation:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.step and batch_idx == 0 and self.in_validation:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "step", "in_validation", "workers"),
    [
        (signal.SIGTERM, 7, False, 0),
        (signal.SIGINT, 5, False, 0),
        (signal.SIGTERM, 10, True, 0),
        (signal.SIGTERM, 8, False, 2),
    ],
)
def test_saves_at_the_next_boundary_and_goes_on_exactly(
    number: int,
    step: int,
    in_validation: bool,
    workers: int,
    tmp_path: Path,
    record_property: Callable,
) -> None:
    torch.set_num_threads(1)

    def config(name: str):
        more = dict(accumulate=2, custom_hooks=EMA, workers=workers)
        return tiny_config(tmp_path / name, **more, **VALIDATION, **QUIET)

    whole, losses = start(config("whole"))
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(StoppedError) as stopped:
        start(config("stopped"), Send(number, step, in_validation))
    assert stopped.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert newest_valid(tmp_path / "stopped") == tmp_path / "stopped" / FILE
    again, rest = start(config("stopped"), resume=True)
    assert rest.by_step == {s: v for s, v in losses.by_step.items() if s > step}
    assert same(weights(whole), weights(again))
    where = "during validation" if in_validation else "inside a step"
    recorder(record_property)(
        f"{signal.Signals(number).name} {where}, {workers} workers",
        "a checkpoint at the next step boundary",
        f"saved after step {step}; resumed bit for bit",
    )


SLOW = """
import os, signal, sys, time
from pathlib import Path
from mmengine.hooks import Hook
from reliability import start, tiny_config

class Twice(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same, passed on by make or a shell
        print("one", flush=True)
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(900)
        print("two", flush=True)

start(tiny_config(Path(sys.argv[1]), workers=1), Twice())
"""

HOLD = """
import sys, time
from tokensparse.engine.work_dir_lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def child(code: str, folder: Path) -> subprocess.Popen:
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_a_second_signal_ends_at_once(tmp_path: Path, record_property: Callable) -> None:
    run = child(SLOW, tmp_path)
    said, _ = run.communicate(timeout=600)
    assert run.returncode == 128 + signal.SIGTERM
    assert said.split() == [b"one"]
    assert not (tmp_path / FILE).exists()
    recorder(record_property)(
        "a second SIGTERM, a second after the first",
        "ends at once",
        "exit code 143, nothing written",
    )


def test_a_second_run_is_refused_and_a_dead_ones_lock_is_free(
    tmp_path: Path, record_property: Callable
) -> None:
    holder = child(HOLD, tmp_path)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(WorkDirInUseError, match=rf"in use by process {holder.pid} on"):
        start(tiny_config(tmp_path, **QUIET))
    holder.kill()
    holder.wait()
    (tmp_path / "epoch_3.pth.partial").write_bytes(b"half")
    with locked(tmp_path):
        assert not (tmp_path / "epoch_3.pth.partial").exists()
    recorder(record_property)(
        "a second run in the same work dir; then the first is killed",
        "refused; the stale lock is recovered",
        "refused, with the holder's process and host; free at once after SIGKILL",
    )
