"""Learned maps over positions, resized to another grid as position embeddings are."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], antialias: bool = True
) -> Tensor:
    """Resize per-position rows (bicubic, antialiased, as timm resizes position embeddings).

    Args:
        table: (1, H_old * W_old, C).
        old: (H_old, W_old).
        new: (H, W).
        antialias: filter before shrinking, as timm does; mmseg does not.

    Returns:
        (1, H * W, C); ``table`` itself where the grids are equal.
    """
    if old == new:
        return table
    image = table.float().transpose(1, 2).unflatten(2, old)
    image = F.interpolate(image, size=new, mode="bicubic", antialias=antialias, align_corners=False)
    return image.flatten(2).transpose(1, 2).to(table.dtype)


def resize_mixing(weight: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a linear layer over input positions, so that a constant map keeps its response.

    Args:
        weight: (M, H_old * W_old).
        old: (H_old, W_old).
        new: (H, W).

    Returns:
        (M, H * W), times H_old W_old / (H W); ``weight`` itself where the grids are equal.
    """
    if old == new:
        return weight
    resized = resize_positions(weight.t().unsqueeze(0), old, new)[0].t()
    return resized * (old[0] * old[1] / (new[0] * new[1]))


def resize_tokens(weight: Tensor, new: int) -> Tensor:
    """Resize a linear layer over unordered input tokens: (K, M_old) -> (K, M), times M_old / M."""
    old = weight.shape[1]
    if old == new:
        return weight
    row = F.interpolate(weight.float().unsqueeze(1), size=new, mode="linear", align_corners=False)
    return (row.squeeze(1) * (old / new)).to(weight.dtype)


def sincos_positions(num: int, dim: int, device: torch.device) -> Tensor:
    """(num, dim) fixed code: angle p / 10000^(2 floor(i/2) / dim), sine at even i, cosine else."""
    channel = torch.arange(dim, device=device)
    place = torch.arange(num, device=device, dtype=torch.float32).unsqueeze(1)
    angle = place / torch.pow(10000.0, 2.0 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())
