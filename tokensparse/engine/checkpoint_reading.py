"""Reading checkpoints: nothing in them is run, damaged ones are named."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from numpy._core.multiarray import _reconstruct, scalar  # type: ignore[attr-defined]

from tokensparse.checkpoint import CheckpointError, safe_load
from tokensparse.engine.whole_files import DamagedFileError, check_hash, hash_file


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


def read_checkpoint(
    path: str | Path, map_location: Any = "cpu", lazily: bool = False
) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: a file that ``torch.save`` wrote; its content must agree with ``<path>.sha256``, or
            where that is absent with the sums inside.
        map_location: device for the tensors.
        lazily: leave the tensors on the disk until they are used; their bytes are not checked.

    Returns:
        The checkpoint; plain state dicts come as ``{'state_dict': ...}``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds objects other than numbers, tensors and
            containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {Path(path).resolve()}")
    if not lazily:
        check_hash(path)
    try:
        checkpoint = safe_load(path, HARMLESS, map_location, mmap=lazily)
    except CheckpointError as error:
        raise DamagedFileError(str(error)) from error
    if not lazily and not hash_file(path).is_file():
        _check_sums(path)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint.get("model", checkpoint)}
    return checkpoint


def _check_sums(path: str | Path) -> None:
    """The archive's own checksums, which torch writes and does not read."""
    if not zipfile.is_zipfile(path):  # the format before torch 1.6
        return
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise DamagedFileError(f"{path} is damaged: the bytes of {bad} do not agree with its sum")
