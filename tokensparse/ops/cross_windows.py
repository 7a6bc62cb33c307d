"""Cross attention from windows of queries to enlarged, overlapping windows of keys.

Keys and values are projected once per token before they come here; windows are gathered one row of
windows at a time, so memory holds one row. Shapes: B batch, h heads, D head dim, q queries of a
window, R x S windows, k side of a key window.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokensparse.ops.attention import HIDDEN, Form, attend

#: Padding of windows: hidden; as the released mask has it; or taking part everywhere.
Padding = Literal["masked", "released", "attended"]


class KeyWindows(NamedTuple):
    """Where the key windows lie on the key map.

    Attributes:
        rows: first row of each of the R rows of windows; negative or past the end reaches over the
            border.
        cols: first column of each of the S columns of windows.
        side: k.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    side: int


def clamped_windows(grid: tuple[int, int], window: int, side: int) -> KeyWindows:
    """Enlarged windows inside the map: start at clamp(window i - margin, 0, H - side).

    STViT, arXiv:2303.08685, Sec. 3.3.

    Args:
        grid: (H, W) of the keys.
        window: side of a query window, in keys.
        side: k; the margin is (k - window) // 2.

    Returns:
        One key window for every query window, partial ones included; k is clipped to the map.
    """
    side = min(side, *grid)
    margin = (side - window) // 2
    starts = [
        tuple(max(0, min(window * i - margin, length - side)) for i in range(-(-length // window)))
        for length in grid
    ]
    return KeyWindows(starts[0], starts[1], side)


def centred_windows(windows: tuple[int, int], stride: int, side: int) -> KeyWindows:
    """Enlarged windows around the query windows, over the border too (STViT-R, released code).

    Args:
        windows: (R, S) query windows.
        stride: keys between neighbouring windows.
        side: k; floor((k - stride) / 2) keys lie left of and above the query window.
    """
    before = (side - stride) // 2
    rows, cols = (tuple(stride * i - before for i in range(count)) for count in windows)
    return KeyWindows(rows, cols, side)


def _index(starts: tuple[int, ...], side: int, length: int, device: torch.device) -> Tensor:
    """(len(starts), side) places along one axis; ``length`` stands for everything outside."""
    place = torch.tensor(starts, device=device)[:, None] + torch.arange(side, device=device)
    return torch.where((place >= 0) & (place < length), place, length)


def attend_windows(
    q: Tensor,
    kv: Tensor,
    where: KeyWindows,
    border: Tensor,
    hidden: Tensor | None = None,
    border_hidden: bool = True,
    extra: Tensor | None = None,
    form: Form | Literal["auto"] = "auto",
) -> Tensor:
    """Every window of queries attends to its window of keys.

    Args:
        q: (B, R, S, h, q, D).
        kv: (B, H, W, 2, h, D) keys and values of the map.
        where: the key windows.
        border: (2, h, D) key and value of a place outside the map.
        hidden: (B or 1, H, W) booleans, keys that nobody sees.
        border_hidden: nobody sees places outside the map.
        extra: (B, R, S, 2, h, e, D) further keys and values of every window, always seen.
        form: form of attention.

    Returns:
        (B, R, S, h, q, D).
    """
    height, width = kv.shape[1:3]
    rows = _index(where.rows, where.side, height, kv.device)
    cols = _index(where.cols, where.side, width, kv.device)
    outside = any(s < 0 or s + where.side > height for s in where.rows) or any(
        s < 0 or s + where.side > width for s in where.cols
    )
    if outside:
        kv = _with_border(kv, border.to(kv.dtype))
    bias = _bias(hidden, outside and border_hidden, kv, (height, width))
    out = []
    for r in range(len(where.rows)):
        line = kv[:, rows[r]][:, :, cols]
        # (B, k, S, k, 2, h, D) -> (2, B, S, h, k * k, D)
        k, v = line.permute(4, 0, 2, 5, 1, 3, 6).flatten(4, 5).unbind(0)
        seen = None
        if bias is not None:
            seen = bias[:, rows[r]][:, :, cols].transpose(1, 2).flatten(2)[:, :, None, None]
        if extra is not None:
            more = extra[:, r].movedim(2, 0)
            k, v = torch.cat([more[0], k], 3), torch.cat([more[1], v], 3)
            if seen is not None:
                seen = torch.cat([seen.new_zeros(*seen.shape[:-1], more.shape[-2]), seen], -1)
        out.append(attend(q[:, r], k, v, None if seen is None else seen.to(q.dtype), form=form)[0])
    return torch.stack(out, 1)


def _with_border(kv: Tensor, border: Tensor) -> Tensor:
    """One more row and column, all border: (B, H, W, ...) -> (B, H + 1, W + 1, ...)."""
    column = border.expand(kv.shape[0], kv.shape[1], 1, *border.shape)
    kv = torch.cat([kv, column], 2)
    row = border.expand(kv.shape[0], 1, kv.shape[2], *border.shape)
    return torch.cat([kv, row], 1)


def _bias(
    hidden: Tensor | None, border_hidden: bool, kv: Tensor, grid: tuple[int, int]
) -> Tensor | None:
    """(B or 1, rows, columns of ``kv``) added to logits, or None where everything is seen."""
    if hidden is None and not border_hidden:
        return None
    batch = 1 if hidden is None else hidden.shape[0]
    mask = torch.zeros(batch, *kv.shape[1:3], dtype=torch.bool, device=kv.device)
    if border_hidden:
        mask[:, grid[0] :] = True
        mask[:, :, grid[1] :] = True
    if hidden is not None:
        mask[:, : grid[0], : grid[1]] |= hidden
    return mask.float() * HIDDEN


def grown(kv: Tensor, grid: tuple[int, int], border: Tensor) -> Tensor:
    """Pad a key map right and below: (B, H, W, 2, h, D) -> (B, *grid, 2, h, D).

    The new places hold ``border`` (2, h, D).
    """
    border = border.to(kv.dtype)
    batch, height, width = kv.shape[:3]
    if grid[1] > width:
        column = border.expand(batch, height, grid[1] - width, *border.shape)
        kv = torch.cat([kv, column], 2)
    if grid[0] > height:
        row = border.expand(batch, grid[0] - height, grid[1], *border.shape)
        kv = torch.cat([kv, row], 1)
    return kv


def released_hidden(
    padding: Padding,
    grid: tuple[int, int],
    window: int,
    target: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor | None, bool]:
    """The padding masks of the released STViT-R detection code, faults included.

    ``attended`` masks nothing. ``released`` masks nothing where there is no padding, not even
    places over the border; with padding along one axis, that strip; along both, the corner alone.

    Args:
        padding: ``attended`` or ``released``.
        grid: (H, W) of the image tokens, which fixes how many rows and columns are padded.
        window: side of a window of image tokens.
        target: (rows, columns) of the map that the mask indexes: the padded map, or the semantic
            grid.
        device: of the mask.

    Returns:
        (1, *target) booleans or None, and whether places over the border are hidden.
    """
    below, right = -grid[0] % window, -grid[1] % window
    if padding == "attended" or (not below and not right):
        return None, False
    mask = torch.zeros(1, *target, dtype=torch.bool, device=device)
    mask[:, -below if below else 0 :, -right if right else 0 :] = True
    return mask, True


def check_padding(padding: str) -> Padding:
    """Raise ValueError unless it is one of the three."""
    if padding not in ("masked", "released", "attended"):
        raise ValueError(f"padding={padding!r}; legal: 'masked', 'released', 'attended'")
    return padding  # type: ignore[return-value]
