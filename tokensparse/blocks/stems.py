"""From the image to the first map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def grid_of(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(H, W) of the map that an image of ``size`` pixels gives at ``stride``, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


class PatchStem(nn.Module):
    """Non-overlapping patches by one convolution, zero-padded right and below to whole patches.

    Args:
        in_chans: channels of the image.
        dim: C.
        patch_size: side of a patch in pixels; the stride of the map.
        norm_eps: eps of a layer norm afterwards, None for no norm.
    """

    def __init__(
        self, in_chans: int, dim: int, patch_size: int, norm_eps: float | None = None
    ) -> None:
        super().__init__()
        self.stride = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, img: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, 3, h, w) -> (B, H * W, C), row-major; ``valid`` changes nothing: no overlap."""
        h, w = img.shape[-2:]
        grid = grid_of((h, w), self.stride)
        pad = (0, grid[1] * self.stride - w, 0, grid[0] * self.stride - h)
        if any(pad):
            img = F.pad(img, pad)
        return self.norm(self.proj(img).flatten(2).transpose(1, 2))


class ConvStem(nn.Module):
    """Two 3 x 3 stride-2 convolutions with batch norm and Hardswish.

    STViT, arXiv:2303.08685, Sec. 3.3.

    The image is zero-padded at the right and bottom to a multiple of 4.

    Args:
        in_chans: channels of the image.
        dim: C, even.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.stride = 4
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.act = nn.Hardswish()

    def forward(self, img: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, 3, h, w), (B, 2) valid pixels or None -> (B, H * W, C), row-major."""
        grid = grid_of((img.shape[-2], img.shape[-1]), self.stride)
        pad = (0, grid[1] * self.stride - img.shape[-1], 0, grid[0] * self.stride - img.shape[-2])
        if any(pad):
            img = F.pad(img, pad)
        x = self.act(self.bn1(self.conv1(img)))
        x = blank_padding(x, None if valid is None else (valid + 1) // 2)
        return self.act(self.bn2(self.conv2(x))).flatten(2).transpose(1, 2)


def blank_padding(img: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the pixels outside each image's valid size.

    Args:
        img: (B, 3, h, w).
        valid: (B, 2) rows and columns that are no padding, or None.

    Returns:
        The image, padding zeroed, so that its content cannot change anything.
    """
    if valid is None:
        return img
    rows = torch.arange(img.shape[-2], device=img.device)[None] < valid[:, :1]
    cols = torch.arange(img.shape[-1], device=img.device)[None] < valid[:, 1:]
    inside = rows[:, None, :, None] & cols[:, None, None, :]
    return torch.where(inside, img, torch.zeros((), dtype=img.dtype, device=img.device))


def valid_tokens(valid: Tensor | None, grid: tuple[int, int], stride: int, like: Tensor) -> Tensor:
    """Size of every token at the start: 1, or 0 where the token holds padding alone.

    Args:
        valid: (B, 2) valid pixels, or None.
        grid: (H, W).
        stride: pixels per token.
        like: (B, H * W, C), for batch and device.

    Returns:
        (B, H * W, 1) float32.
    """
    if valid is None:
        return like.new_ones((), dtype=torch.float32).expand(like.shape[0], grid[0] * grid[1], 1)
    rows = torch.arange(grid[0], device=like.device)[None] * stride < valid[:, :1]
    cols = torch.arange(grid[1], device=like.device)[None] * stride < valid[:, 1:]
    return (rows[:, :, None] & cols[:, None, :]).flatten(1).unsqueeze(-1).float()
