"""Checkpoints that are never lost: the old one is removed last, the newest valid one is found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from tokensparse.engine.checkpoint_reading import read_checkpoint
from tokensparse.engine.whole_files import check_hash, hash_file, remove_hashed, write_whole
from tokensparse.registry import HOOKS


class LateRemoval:
    """A file backend whose ``remove`` waits until :meth:`settle`.

    Args:
        backend: mmengine's, for everything else.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.waiting: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, filepath: str | Path) -> None:
        """Remember to remove a file."""
        self.waiting.append(str(filepath))

    def settle(self, keep: Sequence[str | None]) -> None:
        """Remove what was to be removed, but nothing in ``keep``."""
        for path in self.waiting:
            if path not in keep:
                remove_hashed(path)
        self.waiting.clear()


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's, with the old checkpoint removed after the new one is whole.

    The runner takes it wherever a config names mmengine's.
    """

    def before_train(self, runner: Runner) -> None:
        """Postpone removals."""
        super().before_train(runner)
        self.file_backend = LateRemoval(self.file_backend)
        self._newest: str | None = None

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(runner)
        self._settle()

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._settle()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():  # mmengine has just written this file in place
            write_whole(Path(runner.work_dir, "last_checkpoint"), str(self.last_ckpt).encode())

    def _settle(self) -> None:
        best = [getattr(self, "best_ckpt_path", None)]
        best += list(getattr(self, "best_ckpt_path_dict", {}).values())
        self.file_backend.settle([self.last_ckpt, *best])


def newest_valid(folder: str | Path, warn: Any = print) -> Path | None:
    """The checkpoint from which a run goes on: the one with most iterations that is not damaged.

    Checkpoints without the optimiser's state (the best ones) are not looked at.

    Args:
        folder: a run's work dir.
        warn: gets one line per damaged file.

    Returns:
        The file; None where there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    found: list[tuple[int, int, Path]] = []
    damaged = []
    for path in sorted(Path(folder).glob("*.pth")):
        try:
            checkpoint = read_checkpoint(path, lazily=True)
        except ValueError as error:
            damaged.append(f"{error}")
            warn(f"passed over: {error}")
            continue
        if "optimizer" in checkpoint and "iter" in checkpoint.get("meta", {}):
            found.append((checkpoint["meta"]["iter"], path.stat().st_mtime_ns, path))
    for _, _, path in sorted(found, reverse=True):
        try:
            if hash_file(path).is_file():
                check_hash(path)
            else:
                read_checkpoint(path)
        except ValueError as error:
            damaged.append(f"{error}")
            warn(f"passed over: {error}")
        else:
            return path
    if damaged:
        raise ValueError(
            f"no checkpoint in {Path(folder).resolve()} is valid:\n  " + "\n  ".join(damaged)
        )
    return None


def agree_on_newest(runner: Runner) -> Path | None:
    """:func:`newest_valid` of the work dir, found by the first process and told to all.

    Args:
        runner: knows the work dir.

    Returns:
        See :func:`newest_valid`.

    Raises:
        ValueError: see :func:`newest_valid`; in every process.
    """
    told: list[Any] = [None, None]
    if is_main_process():
        try:
            told[0] = newest_valid(runner.work_dir, runner.logger.warning)
        except ValueError as error:
            told[1] = str(error)
    broadcast_object_list(told)
    if told[1]:
        raise ValueError(told[1])
    newest: Path | None = told[0]
    return newest
