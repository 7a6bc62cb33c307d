"""From one Swin stage to the next."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours, norm, reduce (Swin, arXiv:2103.14030, Sec. 3.1).

    Odd maps are zero-padded right and below.

    Args:
        dim: C in.
        out_dim: C out.
        norm_eps: eps of the layer norm.
    """

    def __init__(self, dim: int, out_dim: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=norm_eps)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, H * W, C) -> (B, ceil(H/2) * ceil(W/2), C out); blocks (0,0), (1,0), (0,1), (1,1)."""
        h, w = grid
        x = x.unflatten(1, grid)
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        return self.reduction(self.norm(x))


class LinearTransition(nn.Module):
    """Change the width, keep the tokens (STViT-Swin, arXiv:2303.08685, Sec. 3.3).

    Args:
        dim: C in.
        out_dim: C out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C out)."""
        return self.reduction(x)


def halved(size: Tensor, grid: tuple[int, int]) -> Tensor:
    """Padding after merging: a merged token is valid where any of its four was.

    Args:
        size: (B, H * W, 1).
        grid: (H, W).

    Returns:
        (B, ceil(H/2) * ceil(W/2), 1), 1 or 0.
    """
    image = (size > 0).float().transpose(1, 2).unflatten(2, grid)
    image = F.max_pool2d(image, 2, ceil_mode=True)
    return image.flatten(2).transpose(1, 2)


def half_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """(ceil(H/2), ceil(W/2))."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def zero_padding(x: Tensor, size: Tensor) -> Tensor:
    """Zero the tokens of size 0: (B, N, C), (B, N, 1) -> (B, N, C)."""
    return torch.where(size > 0, x, torch.zeros((), dtype=x.dtype, device=x.device))
