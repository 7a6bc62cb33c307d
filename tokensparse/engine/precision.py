"""Mixed precision on CPU and GPU: an optimiser wrapper that chooses what the device does fast."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from tokensparse.registry import OPTIM_WRAPPERS

Precision = Literal["auto", "bf16", "fp32"]


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 products have hardware: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device == "cpu":
        flags = torch.backends.cpu.get_cpu_capability()
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        probes = [getattr(torch.cpu, name, None) for name in names]
        return flags.startswith("AVX512") and any(probe() for probe in probes if probe)
    return False


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Forward in bf16 autocast where the device is fast at it; weights and optimiser stay fp32.

    bf16 keeps fp32's range, so there is no loss scale. For fp16 take mmengine's
    ``AmpOptimWrapper``.

    Args:
        optimizer: the optimiser.
        precision: ``auto`` takes bf16 where there is hardware for it, else fp32.
        **kwargs: ``clip_grad``, ``accumulative_counts``, see mmengine's ``OptimWrapper``.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, precision: Precision = "auto", **kwargs: Any
    ) -> None:
        super().__init__(optimizer, **kwargs)
        if precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision={precision!r}; legal: 'auto', 'bf16', 'fp32'")
        self.device = get_device()
        fast = precision == "auto" and has_fast_bf16(self.device)
        self.precision: Precision = "bf16" if precision == "bf16" or fast else "fp32"

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Around forward and loss."""
        enabled = self.precision == "bf16"
        with super().optim_context(model), torch.autocast(self.device, torch.bfloat16, enabled):
            yield
