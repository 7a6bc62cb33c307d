"""Multiply-accumulates of the operations that a forward really executes, read off the dispatcher.

Matrix products and convolutions count, every form of fused attention included; norms, activations
and copies do not.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Cost = Callable[[str, tuple[Any, ...], Any], int]


def _matrix_product(a: Tensor, b: Tensor) -> int:
    return a.numel() * b.shape[-1]


def _convolution(out: Tensor, weight: Tensor, transposed: bool, x: Tensor) -> int:
    return (x if transposed else out).numel() * weight[0].numel()


def _attention(q: Tensor, k: Tensor, v: Tensor) -> int:
    rows = q.numel() // q.shape[-1]
    return rows * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def macs_of(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Multiply-accumulates of one operation.

    Args:
        name: of the operation, without overload, such as ``addmm``.
        args: its positional arguments.
        out: its result.

    Returns:
        The count; 0 for operations that are no product.
    """
    if name in ("mm", "bmm"):
        return _matrix_product(args[0], args[1])
    if name in ("addmm", "baddbmm"):
        return _matrix_product(args[1], args[2])
    if name in ("mv", "dot"):
        return int(args[0].numel())
    if name == "linear":
        return int(args[0].numel()) * int(args[1].shape[0])
    if name in ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"):
        transposed = bool(args[6]) if name in ("convolution", "_convolution") else False
        return _convolution(out, args[1], transposed, args[0])
    if name.startswith("_scaled_dot_product"):
        return _attention(args[0], args[1], args[2])
    return 0


def layer_norm_of(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Operations of a LayerNorm in fvcore's way, 0 for everything else; see :func:`macs_of`."""
    if name != "native_layer_norm":
        return 0
    return int(args[0].numel()) * (5 if args[2] is not None else 4)


class _Watch(TorchDispatchMode):
    def __init__(self, names: list[str], cost: Cost) -> None:
        super().__init__()
        self.names = names
        self.cost = cost
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "overloadpacket", func)).removeprefix("aten.")
        if name != "linear":
            with self:  # inference mode hands composite operations over whole: count what is inside
                parts = func.decompose(*args, **kwargs)  # type: ignore[attr-defined]
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        cost = self.cost(name, args, out)
        if cost:
            self.found[self.names[-1]] += cost
        return out


@contextmanager
def _named_calls(model: nn.Module, names: list[str]):  # type: ignore[no-untyped-def]
    """Keep the name of the module that is running at the end of ``names``."""
    handles = []
    for name, module in model.named_modules():
        if name:
            enter = module.register_forward_pre_hook(lambda *_, name=name: names.append(name))
            leave = module.register_forward_hook(lambda *_: names.pop() and None, always_call=True)
            handles += [enter, leave]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def executed(model: nn.Module, inputs: Tensor, cost: Cost = macs_of) -> dict[str, int]:
    """Run a forward and count.

    Args:
        model: on the device of ``inputs``.
        inputs: (1, 3, h, w).
        cost: of one operation.

    Returns:
        Multiply-accumulates, or what ``cost`` counts, by the name of the innermost module that was
        running ('' for none).
    """
    names = [""]
    watch = _Watch(names, cost)
    with torch.no_grad(), _named_calls(model, names), watch:
        model(inputs)
    return dict(watch.found)
