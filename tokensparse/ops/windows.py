"""Windows of a grid: layout, partition, and the way back.

Maps are token sequences (B, H * W, C) in row-major order. W windows of n = window^2 places each.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokensparse.ops.attention import HIDDEN

#: Swin's own constant for pairs that the shift brought together (arXiv:2103.14030, Sec. 3.2).
SHIFT_HIDDEN = -100.0


class WindowLayout(NamedTuple):
    """Where windows lie on a grid.

    Attributes:
        grid: (H, W) of the map.
        window: side of a window.
        shift: (rows, columns) of the cyclic shift.
        bare: the bare map is shifted and padded afterwards (timm); else padding travels along.
    """

    grid: tuple[int, int]
    window: int
    shift: tuple[int, int] = (0, 0)
    bare: bool = False

    @property
    def padded(self) -> tuple[int, int]:
        """(H, W) rounded up to whole windows; padding lies right and below."""
        h, w = self.grid
        return -(-h // self.window) * self.window, -(-w // self.window) * self.window

    @property
    def is_padded(self) -> bool:
        """Whether any place of a window lies outside the map."""
        return self.padded != self.grid

    @property
    def num_windows(self) -> int:
        """W."""
        return self.padded[0] * self.padded[1] // self.window**2


def shifted_layout(grid: tuple[int, int], window: int, shifted: bool, rule: str) -> WindowLayout:
    """Layout of a Swin block.

    Args:
        grid: (H, W).
        window: side of a window.
        shifted: whether this block is one of the shifted ones.
        rule: ``auto``: no shift along an axis that one window covers; ``always``: shift whatever
            the size (mmdet's and mmseg's Swin); ``official``: no shift on either axis where one
            window covers the shorter side (Swin's authors, mmpretrain); ``timm`` and
            ``timm-always``: ``auto`` and ``always``, but the map is shifted before it is padded,
            as timm's Swin does.

    Returns:
        The layout.
    """
    layout = WindowLayout(grid, window)
    if not shifted:
        return layout
    half = window // 2
    if rule.endswith("always"):
        return layout._replace(shift=(half, half), bare=rule.startswith("timm"))
    if rule == "official":
        whole = min(grid) <= window
        return layout if whole else layout._replace(shift=(half, half))
    rows, cols = (0 if window >= side else half for side in layout.padded)
    return layout._replace(shift=(rows, cols), bare=rule.startswith("timm"))


def _laid_out(x: Tensor, layout: WindowLayout, fill: float) -> Tensor:
    """(B, H * W, C) -> (B, window rows, side, window columns, side, C): padded and shifted."""
    (h, w), (hp, wp), side = layout.grid, layout.padded, layout.window
    x = x.view(x.shape[0], h, w, x.shape[-1])
    back = (-layout.shift[0], -layout.shift[1])
    if layout.bare and layout.shift != (0, 0):
        x = torch.roll(x, back, (1, 2))
    if layout.is_padded:
        x = F.pad(x, (0, 0, 0, wp - w, 0, hp - h), value=fill)
    if not layout.bare and layout.shift != (0, 0):
        x = torch.roll(x, back, (1, 2))
    return x.view(x.shape[0], hp // side, side, wp // side, side, x.shape[-1])


def partition(x: Tensor, layout: WindowLayout, fill: float = 0.0) -> Tensor:
    """Cut a map into windows.

    Args:
        x: (B, H * W, C).
        layout: where the windows lie.
        fill: value of the places outside the map.

    Returns:
        (B, W, n, C).
    """
    x = _laid_out(x, layout, fill).transpose(2, 3)
    return x.reshape(x.shape[0], layout.num_windows, layout.window**2, x.shape[-1])


def partition_heads(qkv: Tensor, layout: WindowLayout, heads: int, parts: int = 3) -> Tensor:
    """Cut queries, keys and values into windows and heads, in one copy.

    Args:
        qkv: (B, H * W, parts * C).
        layout: where the windows lie; places outside the map are 0.
        heads: h.
        parts: how many tensors lie side by side in the channels.

    Returns:
        (parts, B, W, h, n, D), contiguous.
    """
    x = _laid_out(qkv, layout, 0.0)
    x = x.view(*x.shape[:-1], parts, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    n = layout.window**2
    return x.reshape(parts, x.shape[1], layout.num_windows, heads, n, x.shape[-1])


def unpartition_heads(x: Tensor, layout: WindowLayout) -> Tensor:
    """The way back: (B, W, h, n, D) -> (B, H * W, h * D), in one copy."""
    (hp, wp), side = layout.padded, layout.window
    b, _, heads, _, d = x.shape
    x = x.view(b, hp // side, wp // side, heads, side, side, d).permute(0, 1, 4, 2, 5, 3, 6)
    return _cropped(x.reshape(x.shape[0], hp, wp, -1), layout)


def unpartition(x: Tensor, layout: WindowLayout) -> Tensor:
    """The way back: (B, W, n, C) -> (B, H * W, C), places outside the map cut off."""
    (hp, wp), side = layout.padded, layout.window
    x = x.view(x.shape[0], hp // side, wp // side, side, side, x.shape[-1]).transpose(2, 3)
    return _cropped(x.reshape(x.shape[0], hp, wp, x.shape[-1]), layout)


def _cropped(x: Tensor, layout: WindowLayout) -> Tensor:
    """(B, H padded, W padded, C) -> (B, H * W, C): the shift undone, padding cut off."""
    h, w = layout.grid
    if layout.bare:
        x = x[:, :h, :w]
    if layout.shift != (0, 0):
        x = torch.roll(x, layout.shift, (1, 2))
    return x[:, :h, :w].reshape(x.shape[0], h * w, x.shape[-1])


def shift_mask(layout: WindowLayout, device: torch.device) -> Tensor:
    """(W, n, n): SHIFT_HIDDEN between places that only the cyclic shift made neighbours, else 0."""
    region = torch.zeros(layout.padded, device=device)
    for axis, (side, shift) in enumerate(zip(layout.padded, layout.shift, strict=True)):
        if shift == 0:
            continue
        place = torch.arange(side, device=device)
        band = (place >= side - layout.window).float() + (place >= side - shift).float()
        region = region + (3.0**axis) * (band[:, None] if axis == 0 else band)
    whole = WindowLayout(layout.padded, layout.window)
    region = partition(region.view(1, -1, 1), whole)[0, :, :, 0]
    apart = region.unsqueeze(1) != region.unsqueeze(2)
    return apart.float() * SHIFT_HIDDEN


def outside_mask(layout: WindowLayout, device: torch.device) -> Tensor:
    """(W, 1, n): HIDDEN at places outside the map, else 0."""
    inside = torch.zeros(1, layout.grid[0] * layout.grid[1], 1, device=device)
    return partition(inside, layout, fill=HIDDEN)[0, :, None, :, 0]


def grid_centres(
    grid: tuple[int, int],
    device: torch.device,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(1, H * W, 2): centre (row, column) of every cell, in units of ``1 / scale`` cells."""
    rows = (torch.arange(grid[0], device=device, dtype=dtype) + 0.5) * scale
    cols = (torch.arange(grid[1], device=device, dtype=dtype) + 0.5) * scale
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"), -1).view(1, -1, 2)


def cut_windows(x: Tensor, windows: tuple[int, int]) -> Tensor:
    """(B, R * w, S * w, C) -> (B * R * S, C, w, w)."""
    x = x.unflatten(2, (windows[1], -1)).unflatten(1, (windows[0], -1))
    return x.permute(0, 1, 3, 5, 2, 4).flatten(0, 2)


def row_major(s: Tensor, tile: int) -> Tensor:
    """(B, R, S, s^2, C) -> (B, R * s * S * s, C)."""
    tokens: Tensor = s.unflatten(3, (tile, tile)).transpose(2, 3).flatten(1, 4)
    return tokens


def tiled(s: Tensor, windows: tuple[int, int], tile: int) -> Tensor:
    """(B, R * s * S * s, C) -> (B, R, S, s^2, C)."""
    s = s.unflatten(1, (windows[0], tile, windows[1], tile))
    tiles: Tensor = s.transpose(2, 3).flatten(3, 4)
    return tiles
