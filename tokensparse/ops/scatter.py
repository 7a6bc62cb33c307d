"""Sums over members of a slot."""

import torch
from torch import Tensor
from torch.nn import functional as F


def scatter_sum(x: Tensor, slot: Tensor, num_slots: int) -> Tensor:
    """Add the tokens of each slot.

    Args:
        x: (B, N, C).
        slot: (B, N), integers in 0..num_slots - 1.
        num_slots: M.

    Returns:
        (B, M, C). Exported graphs use a one-hot matrix product: runtimes refuse scatter with a reduction.
    """
    if torch.compiler.is_exporting():
        return F.one_hot(slot, num_slots).to(x.dtype).transpose(1, 2) @ x
    index = slot.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.new_zeros(x.shape[0], num_slots, x.shape[-1]).scatter_add(1, index, x)
