"""Numpy's numbers in a checkpoint: rebuilt from their bytes, and from nothing else.

Numpy's own functions, called with what a file says, reserve any amount of memory for an array
without content. These stand in their places while a checkpoint is read.
"""

import math
import re
from typing import Any

import numpy as np
from numpy._core.multiarray import scalar as _scalar  # type: ignore[attr-defined]


class Kind:
    """Stands for ``numpy.dtype``: plain numbers and short strings.

    Args:
        name: such as ``f8``.

    Raises:
        ValueError: anything else.
    """

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[biufcSU][0-9]{1,3}", name):
            raise ValueError(f"numpy numbers of kind {str(name)[:40]!r} are refused")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the order of bytes, and nothing else."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def _bytes_of(kind: Any, content: Any, number: int) -> np.dtype:
    if not isinstance(kind, Kind) or not isinstance(content, bytes):
        raise ValueError("numpy numbers without their bytes are refused")
    if len(content) != number * kind.dtype.itemsize:
        raise ValueError(f"{number} numpy numbers in {len(content)} bytes are refused")
    return kind.dtype


def number(kind: Any, content: Any = None) -> Any:
    """Stands for numpy's ``scalar``: one number out of its bytes.

    Raises:
        ValueError: the bytes are absent, or not as many as the kind has.
    """
    return _scalar(_bytes_of(kind, content, 1), content)


class Numbers(np.ndarray):
    """Stands for ``numpy.ndarray``, which a file may name but not call."""

    def __new__(cls, *_: Any) -> "Numbers":
        """Refuse a call.

        Raises:
            ValueError: always.
        """
        raise ValueError("an array without content is refused")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take shape, kind and bytes.

        Raises:
            ValueError: they do not agree.
        """
        version, shape, kind, fortran, content = state
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("an array of no shape is refused")
        dtype = _bytes_of(kind, content, math.prod(shape))
        super().__setstate__((version, tuple(shape), dtype, bool(fortran), content))

    def __reduce__(self) -> Any:
        """Pickle as what it stands for."""
        return np.asarray(self).view(np.ndarray).__reduce__()


def empty_array(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """Stands for numpy's ``_reconstruct``: the empty array that every array is unpickled into.

    Raises:
        ValueError: it is not empty.
    """
    if kind is not Numbers or tuple(shape) != (0,):
        raise ValueError(f"an array of shape {str(shape)[:40]} before its content is refused")
    return np.empty(0).view(Numbers)


#: What stands in a checkpoint -> what is taken for it, as ``torch.serialization.safe_globals``.
NUMBERS: list[tuple[Any, str]] = [
    (Numbers, "numpy.ndarray"),
    (Kind, "numpy.dtype"),
    *((empty_array, f"{core}.multiarray._reconstruct") for core in ("numpy.core", "numpy._core")),
    *((number, f"{core}.multiarray.scalar") for core in ("numpy.core", "numpy._core")),
]
