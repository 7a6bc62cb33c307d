"""Weights from a file, read without running anything that the file brings along."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokensparse.checkpoint.hashes import DamagedFileError, check_hash
from tokensparse.checkpoint.safe_load import CheckpointError, safe_load

State = dict[str, Tensor]

_WRAPPERS = ("model", "state_dict")
_AVERAGED = "model_ema"
_DERIVED = ("relative_position_index", "attn_mask")


#: Bookkeeping that mmengine's training checkpoints carry beside the weights.
_BOOKKEEPING = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"{core}.multiarray.{made}"
        for core in ("numpy.core", "numpy._core")
        for made in ("_reconstruct", "scalar")
    ),
)


class Ignored:
    """Stands for an object that is read over: made of anything, keeps and runs nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


def read_state(weights: str | Path | Mapping[str, Any], ema: bool = False) -> State:
    """Tensors by their released names.

    Args:
        weights: path of a safetensors file or of a file of ``torch.save``, or a state dict. What is
            wrapped in ``model`` or ``state_dict`` is unwrapped, and a ``module.`` before every name
            is cut off.
        ema: take the averaged weights in ``model_ema`` (DeiT, timm) instead.

    Returns:
        The tensors; half precision becomes float32. Derived buffers (``relative_position_index``,
        ``attn_mask``) are left out.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file needs more than tensors, numbers and containers to be read (what
            it wants to run is listed; see :func:`allow_globals`), is damaged, or holds no state
            dict, or no averaged weights where they are asked for.
    """
    name = "the state dict"
    content: Any = weights
    if not isinstance(weights, Mapping):
        path = Path(weights)
        name = str(path)
        content = _read_file(path)
    if ema:
        if not isinstance(content.get(_AVERAGED), Mapping):
            raise CheckpointError(f"{name} holds no {_AVERAGED!r}, but ema=True asks for it")
        content = content[_AVERAGED]
    for _ in range(2):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        content = inner[0] if inner else content
    wrong = [
        key
        for key, value in content.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    if wrong or not content:
        raise CheckpointError(
            f"{name} holds no state dict: expected tensors by name, but "
            f"{_some(wrong) or 'nothing'} is there"
            + (f"; ema=True takes {_AVERAGED!r}" if _AVERAGED in wrong else "")
        )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {
        key.removeprefix(prefix): _single(value)
        for key, value in content.items()
        if not key.endswith(_DERIVED)
    }


def _some(names: list[Any]) -> str:
    return ", ".join(str(name) for name in names[:3]) + (" ..." if len(names) > 3 else "")


def _single(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path.resolve()}")
    try:
        check_hash(path)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from None
    tensors = read_safetensors(path)
    if tensors is not None:
        return tensors
    content = safe_load(path, [(Ignored, name) for name in _BOOKKEEPING])
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no state dict")
    return content


def read_safetensors(path: str | Path) -> State | None:
    """Tensors of a safetensors file.

    Args:
        path: a file of any kind.

    Returns:
        The tensors by name; None where neither name nor content says safetensors.

    Raises:
        CheckpointError: it is damaged.
    """
    with open(path, "rb") as stream:
        head = stream.read(9)
    if Path(path).suffix != ".safetensors" and head[8:] != b"{":
        return None
    try:
        return load_file(path)
    except (SafetensorError, MemoryError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}") from error
