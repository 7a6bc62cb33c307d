"""mmengine's runner with safe reading, whole writing, checked labels and a quiet console."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMEngineRunner
from numpy._core.multiarray import _reconstruct, scalar  # type: ignore[attr-defined]
from torch import nn

from tokensparse.classification.classifier import check_labels


def buffer_statistic(owner: object, name: str) -> Callable:
    """Stands for ``getattr`` in a checkpoint: gives the statistics of a history, nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise ValueError(f"getattr of {name!r} is refused")
    statistic: Callable = getattr(HistoryBuffer, name)
    return statistic


#: What mmengine's checkpoints hold beside tensors and plain containers: numbers, which run nothing.
HARMLESS = [
    HistoryBuffer,
    (buffer_statistic, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    _reconstruct,
    scalar,
    *(getattr(np.dtypes, n) for n in ("Float32DType", "Float64DType", "Int32DType", "Int64DType")),
]


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: a file that ``torch.save`` wrote.
        map_location: device for the tensors.

    Returns:
        The checkpoint; plain state dicts come as ``{'state_dict': ...}``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds objects other than numbers, tensors and
            containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {Path(path).resolve()}")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} was not read: it is damaged, or holds objects that could run code ({reason}). "
            "Save it again with tensors, numbers, strings and containers only."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint.get("model", checkpoint)}
    return checkpoint


def part() -> None:
    """Wait for the other processes of a run, then leave them; alone it does nothing."""
    if is_distributed():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class Runner(MMEngineRunner):
    """Reads checkpoints safely, writes them whole, checks labels, keeps the console for people.

    The log file gets everything; the console gets warnings and what :class:`ProgressHook` prints.
    """

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Let several processes meet on machines without a GPU, too."""
        if self.launcher == "pytorch" and not torch.cuda.is_available() and not is_distributed():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

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
            RuntimeError: keys or shapes that are not the model's.
        """
        checkpoint = read_checkpoint(filename, map_location)
        checkpoint.get("meta", {}).pop("config", None)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        state = {k.removeprefix("module."): v for k, v in checkpoint["state_dict"].items()}
        getattr(self.model, "module", self.model).load_state_dict(state, strict=strict)
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
        """Write to a second name, then rename: a full disk leaves the old file as it was.

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
        partial = f"{filename}.partial"
        super().save_checkpoint(
            out_dir,
            partial,
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
        )
        if is_main_process():
            os.replace(Path(out_dir, partial), Path(out_dir, filename))

    def build_train_loop(self, loop: Any) -> BaseLoop:
        """Check the labels, too."""
        return self._checked(super().build_train_loop(loop), "train_dataloader")

    def build_val_loop(self, loop: Any) -> BaseLoop:
        """Check the labels, too."""
        return self._checked(super().build_val_loop(loop), "val_dataloader")

    def build_test_loop(self, loop: Any) -> BaseLoop:
        """Check the labels, too."""
        return self._checked(super().build_test_loop(loop), "test_dataloader")

    def _checked(self, loop: BaseLoop, where: str) -> BaseLoop:
        check_labels(self.model, loop.dataloader.dataset, where)
        return loop
