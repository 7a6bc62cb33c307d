"""Checkpoints that are never lost: the old one is removed last, the newest valid one is found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from tokensparse.checkpoint.hashes import check_hash
from tokensparse.engine.checkpoint_reading import read_checkpoint
from tokensparse.engine.whole_files import remove_hashed, write_whole
from tokensparse.plan import closest
from tokensparse.registry import HOOKS


class LateRemoval:
    """A file backend whose ``remove`` waits until :meth:`settle`.

    What a checkpoint calls the run's best is nobody's word: only files of the run's own folder are
    ever removed, and no folder is.

    Args:
        backend: mmengine's, for everything else.
        folder: where the run's checkpoints lie.
    """

    def __init__(self, backend: Any, folder: str | Path) -> None:
        self.backend = backend
        self.folder = Path(folder).resolve()
        self.waiting: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, filepath: str | Path) -> None:
        """Remember to remove a file."""
        if Path(filepath).resolve().parent == self.folder:
            self.waiting.append(str(filepath))

    def rmtree(self, dir_path: str | Path) -> None:
        """Remove nothing."""

    def settle(self, keep: Sequence[str | None]) -> None:
        """Remove what was to be removed, but nothing in ``keep``."""
        for path in self.waiting:
            if path not in keep:
                remove_hashed(path)
        self.waiting.clear()


#: A run may go on with so many times fewer processes, and so many times more iterations.
MOST_PROCESSES = 4096


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's, with the old checkpoint removed after the new one is whole.

    The runner takes it wherever a config names mmengine's.
    """

    def before_train(self, runner: Runner) -> None:
        """Postpone removals.

        Raises:
            ValueError: ``interval`` is no count.
        """
        if not isinstance(self.interval, int):
            raise ValueError(
                f"default_hooks.checkpoint.interval={self.interval!r}; expected a whole number"
            )
        super().before_train(runner)
        self.file_backend = LateRemoval(self.file_backend, self.out_dir)
        self._newest: str | None = None

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(runner)
        self._settle()

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        for name in self.save_best or ():
            if name not in (*metrics, "auto"):
                raise ValueError(
                    f"default_hooks.checkpoint.save_best={name!r}{closest(name, metrics)}: the "
                    f"evaluation gives {', '.join(metrics)}"
                )
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

    Checkpoints without the optimiser's state (the best ones) are not looked at, and those of an
    earlier run in the same folder are not, either.

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
            changed = path.stat().st_mtime_ns
        except (ValueError, OSError) as error:
            damaged.append(f"{error}")
            warn(f"passed over: {error}")
            continue
        meta = checkpoint.get("meta")
        if "optimizer" in checkpoint and isinstance(meta, dict) and _is_count(meta.get("iter")):
            found.append((changed, meta["iter"], _run_of(meta), path))
    runs = [run for _, _, run, _ in sorted(found, reverse=True)]
    same = [(steps, at, path) for at, steps, run, path in found if run == runs[0]]
    for _, _, path in sorted(same, reverse=True):
        try:
            if not check_hash(path):
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


def _run_of(meta: Mapping[str, Any]) -> Any:
    """Which run wrote a checkpoint, where it says so."""
    resume = meta.get("resume")
    return resume.get("run") if isinstance(resume, dict) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _told(value: Any) -> str:
    """A number, else its kind: what a hostile file nests takes for ever to print."""
    if isinstance(value, (int, float, str)):
        return repr(value)[:40]
    return f"a {type(value).__name__}"


def check_progress(path: str, checkpoint: Mapping[str, Any], most: int) -> None:
    """Refuse to go on from a file that says no sensible place in a run.

    Args:
        path: of the file, for the message.
        checkpoint: its content.
        most: iterations of the run.

    Raises:
        ValueError: no training state, or counts that are none.
    """
    meta = checkpoint.get("meta")
    if not isinstance(meta, dict) or not isinstance(checkpoint.get("optimizer"), dict):
        raise ValueError(
            f"{path} holds weights, but no state of a run to resume; start a run from them with "
            "load_from=<file> and without --resume"
        )
    for name in ("epoch", "iter"):
        if not _is_count(meta.get(name)) or meta[name] > MOST_PROCESSES * max(most, 1):
            raise ValueError(
                f"{path} cannot be resumed: its {name} is {_told(meta.get(name))}, but this run "
                f"has {most} iterations"
            )
    if not isinstance(meta.get("resume", {}), dict):
        raise ValueError(f"{path} cannot be resumed: its meta['resume'] is no dict")
    if not isinstance(meta.get("seed"), int | None):
        raise ValueError(f"{path} cannot be resumed: its seed is no number")


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
