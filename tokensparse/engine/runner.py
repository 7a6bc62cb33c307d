"""mmengine's runner with safe reading, whole writing, checked labels and a quiet console."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS, LOOPS, Registry
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from tokensparse.checkpoint import CheckpointError, fit_head
from tokensparse.classification.classifier import check_labels
from tokensparse.engine.bad_images import BadImagesHook
from tokensparse.engine.checkpoint_reading import read_checkpoint, read_safely_everywhere
from tokensparse.engine.checkpoints import CheckpointHook, agree_on_newest, check_progress
from tokensparse.engine.finite import FiniteHook
from tokensparse.engine.loader import WatchedLoader, watched
from tokensparse.engine.loops import EndlessBatches, EpochLoop
from tokensparse.engine.processes import meeting, part
from tokensparse.engine.resume import ResumeHook
from tokensparse.engine.signals import SignalHook
from tokensparse.engine.work_dir_lock import locked

__all__ = ["Runner", "part", "read_checkpoint"]

#: Hooks that every run has; ``default_hooks=dict(finite=None)`` leaves one out.
SAFETY = {
    "resume": ResumeHook,
    "finite": FiniteHook,
    "signals": SignalHook,
    "bad_images": BadImagesHook,
}


def _meant(kind: Any, registry: Registry) -> Any:
    """The class that a ``type`` names, whatever scope it is written with."""
    return registry.get(kind) if isinstance(kind, str) else kind


#: What constructors raise where a value of a config is of the wrong kind.
WRONG_VALUES = (
    *(TypeError, AssertionError, KeyError, IndexError, AttributeError, ImportError),
    ZeroDivisionError,
)


@contextmanager
def building() -> Iterator[None]:
    """Say of a constructor's error that the config is wrong.

    Raises:
        ValueError: in place of what a constructor raises.
    """
    try:
        yield
    except WRONG_VALUES as error:
        told = str(error).strip().splitlines()
        raise ValueError(
            "the config cannot be built: "
            f"{type(error).__name__}: {told[0] if told else 'no message'}"
        ) from error


class Runner(MMEngineRunner):
    """Reads checkpoints safely, writes them whole, checks labels, keeps the console for people.

    The log file gets everything; the console gets warnings and what :class:`ProgressHook` prints.
    ``resume_newest`` lets a run that resumes take the newest checkpoint of its work dir first, and
    ``load_from`` only where there is none.
    """

    resume_newest = False
    _stepping = False
    _resume_state: dict[str, Any] | None = None

    @classmethod
    def from_cfg(cls, cfg: Any) -> "Runner":
        """Build a run.

        Args:
            cfg: its config.

        Raises:
            ValueError: a value in it is of the wrong kind.
        """
        with building():
            return cast(Runner, super().from_cfg(cfg))

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call a method of every hook; from the first step on errors keep their stacks."""
        if fn_name.startswith("before_") and fn_name.endswith("_iter"):
            self._stepping = True
        super().call_hook(fn_name, **kwargs)

    @contextmanager
    def _building(self) -> Iterator[None]:
        """What goes wrong before the first step is the config's fault."""
        self._stepping = False
        try:
            with building():
                yield
        except ValueError as error:
            if self._stepping and isinstance(error.__cause__, WRONG_VALUES):
                raise error.__cause__ from None
            raise

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Let several processes meet on machines without a GPU, and after a restart, too."""
        super().setup_env(meeting(env_cfg, self.launcher))
        read_safely_everywhere()

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap for data-parallel training, on machines without a GPU, too."""
        if self.distributed and not torch.cuda.is_available():
            unused = self.cfg.get("find_unused_parameters", False)
            return MMDistributedDataParallel(model, find_unused_parameters=unused)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Let only warnings reach the console."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(max(handler.level, logging.WARNING))
                handler.addFilter(lambda record: "will be deprecated" not in record.getMessage())
        return logger

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = True,
        revise_keys: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """Load weights by :func:`read_checkpoint`.

        Args:
            filename: path.
            map_location: device for the tensors.
            strict: refuse missing and extra keys.
            revise_keys: unused; ``module.`` of data-parallel training is cut off.

        Returns:
            The checkpoint.

        Raises:
            ValueError: unsafe or damaged file.
            CheckpointError: keys or shapes that are not the model's.
        """
        checkpoint = read_checkpoint(filename, map_location)
        if self._resume and isinstance(self._train_loop, BaseLoop):
            check_progress(filename, checkpoint, self.max_iters)
        meta = checkpoint.get("meta", {})
        meta.pop("config", None)
        self._resume_state = meta.pop("resume", None)
        model = self.model
        while hasattr(model, "module"):  # data-parallel training, and views of one image
            model = model.module
        state = {k.removeprefix("module."): v for k, v in checkpoint["state_dict"].items()}
        replace = not self._resume and self.cfg.get("replace_head", False)
        checkpoint["state_dict"] = fit_head(state, model, filename, replace)
        try:
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            model.load_state_dict(checkpoint["state_dict"], strict=strict)
        except RuntimeError as error:  # torch's list of keys and shapes
            raise CheckpointError(f"{filename} is not of this model: {error}") from error
        self._has_loaded = True
        return checkpoint

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write to a second name, flush, rename, with a hash beside: see ``whole_files``.

        Args:
            out_dir: a local folder.
            filename: name in it.
            file_client_args: mmengine's, unused.
            save_optimizer: keep the optimiser's state.
            save_param_scheduler: keep the schedule's state.
            meta: what else to keep.
            by_epoch: count in epochs.
            backend_args: mmengine's, unused.
        """
        meta = dict(meta or {})
        resume = self.hook(ResumeHook)
        if save_optimizer and resume is not None:
            meta["resume"] = resume.state(self)
        super().save_checkpoint(
            out_dir,
            filename,
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=dict(backend="tokensparse.whole"),
        )

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable = "default",
    ) -> None:
        """Go on from a checkpoint, exactly where it was written.

        Args:
            filename: path.
            resume_optimizer: load the optimiser's state.
            resume_param_scheduler: load the schedule's state.
            map_location: device for the tensors.

        Raises:
            ValueError: unsafe or damaged file.
        """
        try:
            super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
            state, self._resume_state = self._resume_state, None
            hook = self.hook(ResumeHook)
            if state and hook is not None:
                hook.restore(self, state)
        except (TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{filename} cannot be resumed: the state in it is not of this run "
                f"({type(error).__name__}: {str(error)[:200]})"
            ) from error

    def load_or_resume(self) -> None:
        """Resume from the newest checkpoint that is valid, where none is named."""
        if self._has_loaded or not self._resume or (self._load_from and not self.resume_newest):
            super().load_or_resume()
            return
        newest = agree_on_newest(self)
        if newest is not None:
            self.logger.info(f"going on from {newest}")
            self.resume(str(newest))
        elif self._load_from:
            self._resume = False
            super().load_or_resume()
        else:
            self.logger.warning(f"no checkpoint in {self.work_dir}: the run starts anew")

    def train(self) -> nn.Module:
        """Train, alone in the work dir."""
        with locked(self.work_dir):
            super().dump_config()
            try:
                with self._building():
                    return super().train()
            finally:
                self.call_hook("release")

    def test(self) -> dict[str, float]:
        """Test."""
        with self._building():
            return super().test()

    def dump_config(self) -> None:
        """Wait until the work dir is this run's: see :meth:`train`."""

    def register_default_hooks(self, hooks: Mapping[str, Any] | None = None) -> None:
        """Hooks of mmengine, and those that keep a run from being lost."""
        given: dict[str, Any] = {name: kind() for name, kind in SAFETY.items()}
        given.update(hooks or {})
        left_out = [name for name in SAFETY if given[name] is None]
        super().register_default_hooks({k: v for k, v in given.items() if k not in left_out})

    def register_hook(self, hook: Hook | dict[str, Any], priority: Any = None) -> None:
        """Take the checkpoint hook that removes last in place of mmengine's."""
        if isinstance(hook, dict) and _meant(hook.get("type"), HOOKS) is MMEngineCheckpointHook:
            hook = {**hook, "type": CheckpointHook}
        super().register_hook(hook, priority)

    def hook(self, kind: type) -> Any:
        """The run's hook of that class, or None."""
        return next((hook for hook in self.hooks if isinstance(hook, kind)), None)

    def build_train_loop(self, loop: Any) -> BaseLoop:
        """Loops that go on at any batch, over watched loaders; check the labels, too."""
        if isinstance(loop, dict):
            loader = self.build_dataloader(
                self._train_dataloader,
                seed=self.seed,
                diff_rank_seed=self._randomness_cfg.get("diff_rank_seed", False),
            )
            if not len(loader):
                raise ValueError(
                    f"train_dataloader: {len(loader.dataset)} images and batch_size="
                    f"{loader.batch_sampler.batch_size} with drop_last make no batch"
                )
            hook = self.hook(BadImagesHook) or BadImagesHook()
            quarantine = hook.quarantine(self, loader.dataset)
            self._train_dataloader = watched(loader, self.seed, hook.timeout, quarantine)
            kind = loop.get("type", "EpochBasedTrainLoop" if loop.get("by_epoch") else None)
            if _meant(kind, LOOPS) is EpochBasedTrainLoop:
                loop = {k: v for k, v in loop.items() if k != "by_epoch"} | {"type": EpochLoop}
        loop = super().build_train_loop(loop)
        if type(loop) is IterBasedTrainLoop and isinstance(loop.dataloader, WatchedLoader):
            loop.dataloader_iterator = EndlessBatches(loop.dataloader)
        return self._checked(loop, "train_dataloader")

    def build_val_loop(self, loop: Any) -> BaseLoop:
        """Over a watched loader; check the labels, too."""
        return self._checked(self._watch(super().build_val_loop(loop)), "val_dataloader")

    def build_test_loop(self, loop: Any) -> BaseLoop:
        """Over a watched loader; check the labels, too."""
        return self._checked(self._watch(super().build_test_loop(loop)), "test_dataloader")

    def _watch(self, loop: BaseLoop) -> BaseLoop:
        hook = self.hook(BadImagesHook) or BadImagesHook()
        if not isinstance(loop.dataloader, WatchedLoader):
            loop.dataloader = watched(loop.dataloader, self.seed, hook.timeout)
        return loop

    def _checked(self, loop: BaseLoop, where: str) -> BaseLoop:
        check_labels(self.model, loop.dataloader.dataset, where)
        return loop
