"""SIGTERM and Ctrl-C: a checkpoint at the next step, then the end; a later one ends at once."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tokensparse.engine.loader import kill_children
from tokensparse.registry import HOOKS

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FILE = "interrupted.pth"
SAME = 1.0  # seconds; make and shells pass on a signal that the program has got already


class StoppedError(SystemExit):
    """A signal ended the run after a checkpoint; the exit code is 128 + its number."""


@HOOKS.register_module()
class SignalHook(Hook):
    """Saves ``interrupted.pth`` at the step boundary after a signal, then ends the run.

    All processes of a run stop at the same step: each step they agree, by one small reduction.
    ``--resume`` goes on from that file, inside the epoch.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self._received = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen; only the main thread can."""
        self._received = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """A step boundary."""
        self._stop_if_asked(runner, epoch=runner.epoch, iteration=runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """The boundary after a validation within training."""
        if self._before:
            self._stop_if_asked(runner, epoch=runner.epoch, iteration=runner.iter)

    def release(self, runner: Runner) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            if time.monotonic() - self._since < SAME:
                return
            kill_children()
            os._exit(128 + number)
        self._received, self._since = number, time.monotonic()
        if is_main_process():
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving at the next step; once more ends at once\n".encode())

    def _agreed(self, runner: Runner) -> int:
        """The signal that any process received, or 0."""
        if get_world_size() == 1:
            return self._received
        device = next(runner.model.parameters()).device
        flag = torch.tensor(self._received, device=device)
        all_reduce(flag, "max")
        return int(flag)

    def _stop_if_asked(self, runner: Runner, epoch: int, iteration: int) -> None:
        number = self._agreed(runner)
        if not number:
            return
        meta = dict(epoch=epoch, iter=iteration)
        runner.save_checkpoint(runner.work_dir, FILE, meta=meta, by_epoch=False)
        name = signal.Signals(number).name
        runner.logger.warning(
            f"{name}: stopped after iteration {iteration}; {runner.work_dir}/{FILE} holds "
            "everything. The same command with --resume goes on from there"
        )
        raise StoppedError(128 + number)
