"""Reading checkpoints: nothing in them is run, damaged ones are named."""

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mm_checkpoint

from tokensparse.backbones.pretrained import local_file
from tokensparse.checkpoint import CheckpointError, safe_load
from tokensparse.checkpoint.hashes import DamagedFileError, check_hash
from tokensparse.checkpoint.numbers import NUMBERS
from tokensparse.checkpoint.reading import read_safetensors


def buffer_statistic(owner: object, name: str) -> Callable:
    """Stands for ``getattr`` in a checkpoint: gives the statistics of a history, nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise ValueError(f"getattr of {name!r} is refused")
    statistic: Callable = getattr(HistoryBuffer, name)
    return statistic


#: What mmengine's checkpoints hold beside tensors and plain containers: numbers, which run nothing.
HARMLESS = [HistoryBuffer, (buffer_statistic, "builtins.getattr"), *NUMBERS]


def read_checkpoint(
    path: str | Path, map_location: Any = "cpu", lazily: bool = False
) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: a file of ``torch.save`` or safetensors; its content must agree with the hash in
            ``<path>.sha256``, or where there is none with the sums inside.
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
    compared = not lazily and check_hash(path)
    try:
        checkpoint: Any = read_safetensors(path)
        if checkpoint is None:
            checkpoint = safe_load(path, HARMLESS, map_location, mmap=lazily)
    except CheckpointError as error:
        raise DamagedFileError(str(error)) from error
    if not lazily and not compared:
        _check_sums(path)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint.get("model", checkpoint)}
    return checkpoint


def read_safely_everywhere() -> None:
    """Let mmengine's own initialisers and loaders read as :func:`safe_load` does, from now on.

    Left alone they read with ``weights_only=False`` what ``weights_only=True`` refuses: the
    ``init_cfg`` of a head, a whole model or a part of mmdet or mmseg would run a file's code.
    """
    mm_checkpoint._safe_torch_load = _load_safely
    mm_checkpoint.load_url = _load_url_safely


def _load_safely(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """A path, or the content of a file that mmengine fetched."""
    if isinstance(file, (str, Path)):
        return read_checkpoint(file, map_location or "cpu")
    with tempfile.NamedTemporaryFile(suffix=".pth") as copy:
        copy.write(file.read())
        copy.flush()
        return read_checkpoint(copy.name, map_location or "cpu")


def _load_url_safely(
    url: str, model_dir: str | None = None, map_location: Any = None, **_: Any
) -> Any:
    """A file at an http address, fetched once."""
    return read_checkpoint(local_file(url), map_location or "cpu")


def _check_sums(path: str | Path) -> None:
    """The archive's own checksums, which torch writes and does not read."""
    if not zipfile.is_zipfile(path):  # the format before torch 1.6
        return
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise DamagedFileError(f"{path} is damaged: the bytes of {bad} do not agree with its sum")
