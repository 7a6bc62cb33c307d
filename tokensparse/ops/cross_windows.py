"""Cross attention from windows of queries to enlarged, overlapping windows of keys.

Keys and values are projected once per token before they come here. Windows are not cut out: those
of one strip ask one block of keys in one masked attention. Shapes: B batch, h heads, D head dim, q
queries of a window, R x S windows, k side of a key window.
"""

import math
from collections.abc import Iterator
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


#: First and past the last, by window.
Seen = tuple[tuple[int, int], ...]


class Strip(NamedTuple):
    """Neighbouring query windows that ask one block of keys, each seeing its own window of it.

    Attributes:
        windows: rows [0] and columns [1] of query windows, as slices.
        keys: rows [0] and columns [1] of the key map, as slices; all columns where they fit.
        lines: which of the block's rows each row of windows sees.
        places: the same of columns.
    """

    windows: tuple[slice, slice]
    keys: tuple[slice, slice]
    lines: Seen
    places: Seen


#: A block of keys is at most this many key windows wide. Keys that a window does not see are
#: masked, which costs products; cutting windows out costs copies, and those took longer on a CPU.
WIDEST = 2


def strips(where: KeyWindows, grid: tuple[int, int]) -> list[Strip]:
    """Cut the query windows into strips that share a block of keys.

    A strip is one row of windows, or all of them where the map is no higher than a key window.

    Args:
        where: the key windows.
        grid: (H, W) of the keys.

    Returns:
        Strips in row-major order.
    """
    rows = _spans(where.rows, where.side, grid[0], grid[0] if grid[0] <= where.side else 0)
    cols = _spans(where.cols, where.side, grid[1], WIDEST * where.side)
    return [
        Strip((row, col), (lines, places), lines_seen, places_seen)
        for row, lines, lines_seen in rows
        for col, places, places_seen in cols
    ]


def _spans(
    starts: tuple[int, ...], side: int, length: int, widest: int
) -> list[tuple[slice, slice, Seen]]:
    """Along one axis: windows, the keys of them all, and what each window sees of these keys.

    Windows share a block while it is at most ``widest`` long.
    """
    seen = [(min(max(0, s), length), max(0, min(length, s + side))) for s in starts]
    found = []
    first = 0
    while first < len(seen):
        last = first
        while last + 1 < len(seen) and seen[last + 1][1] - seen[first][0] <= widest:
            last += 1
        begin, end = seen[first][0], seen[last][1]
        inside = tuple((a - begin, b - begin) for a, b in seen[first : last + 1])
        found.append((slice(first, last + 1), slice(begin, end), inside))
        first = last + 1
    return found


def attended_pairs(
    where: KeyWindows, grid: tuple[int, int], border_seen: bool = False, extra: int = 0
) -> int:
    """How many (window, key) pairs :func:`attend_windows` multiplies, masked ones included.

    Args:
        where: the key windows.
        grid: (H, W) of the keys.
        border_seen: places outside the map take part.
        extra: further keys of every window.
    """
    border = int(border_seen and _reaches_out(where, grid))
    total = 0
    for strip in strips(where, grid):
        count = len(strip.lines) * len(strip.places)
        keys = _length(strip.keys[0]) * (_length(strip.keys[1]) + border)
        total += count * (keys + count * extra)
    return total


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _reaches_out(where: KeyWindows, grid: tuple[int, int]) -> bool:
    return any(s < 0 or s + where.side > grid[0] for s in where.rows) or any(
        s < 0 or s + where.side > grid[1] for s in where.cols
    )


class Asked(NamedTuple):
    """Windows of queries and the keys that they ask.

    Attributes:
        q: (B, R, S, h, q, D).
        kv: (B, H, W, 2, h, D) keys and values of the map.
        where: the key windows.
        border: (2, h, D) key and value of a place outside the map.
        hidden: (B or 1, H, W) booleans, keys that nobody sees.
        border_hidden: nobody sees places outside the map.
        extra: (B, R, S, 2, h, e, D) further keys and values of every window, always seen.
    """

    q: Tensor
    kv: Tensor
    where: KeyWindows
    border: Tensor
    hidden: Tensor | None = None
    border_hidden: bool = True
    extra: Tensor | None = None


def attend_windows(asked: Asked, form: Form | Literal["auto"] = "auto") -> Tensor:
    """Every window of queries attends to its window of keys.

    Args:
        asked: queries and keys.
        form: form of attention.

    Returns:
        (B, R, S, h, q, D).
    """
    rows: list[list[Tensor]] = []
    for strip, q, k, v, bias in _strips_of(asked):
        out = attend(q, k, v, bias, form=form)[0][:, 0]
        windows = (len(strip.lines), len(strip.places))
        out = out.unflatten(2, (*windows, -1)).permute(0, 2, 3, 1, 4, 5)
        if strip.windows[1].start == 0:
            rows.append([])
        rows[-1].append(out)
    return torch.cat([torch.cat(row, 2) for row in rows], 1)


def window_looks(asked: Asked) -> Tensor:
    """How much every query looks at every place of the map, for pictures.

    What it looks at outside the map, and at further keys, is left out: a row sums to 1 at most.

    Args:
        asked: queries and keys.

    Returns:
        (B, R, S, q, H, W), mean over the heads.
    """
    b, r, s, _, q, _ = asked.q.shape
    looks = asked.kv.new_zeros(b, r, s, q, *asked.kv.shape[1:3])
    for strip, flat, k, v, bias in _strips_of(asked):
        _, attn = attend(flat, k, v, bias, want_attn=True)
        assert attn is not None
        height, width = (_length(part) for part in strip.keys)
        windows = (len(strip.lines), len(strip.places))
        more = 0 if asked.extra is None else asked.extra.shape[-2] * windows[0] * windows[1]
        cells = attn[:, 0].mean(1)[..., more:].unflatten(-1, (height, -1))[..., :width]
        block = cells.unflatten(1, (*windows, q))
        looks[:, strip.windows[0], strip.windows[1], :, strip.keys[0], strip.keys[1]] = block
    return looks


def _strips_of(asked: Asked) -> Iterator[tuple[Strip, Tensor, Tensor, Tensor, Tensor]]:
    """Strip by strip: queries, keys, values and bias of one attention over (B, 1, h, n, D).

    n is windows * q for queries, further keys and then rows * columns for keys.
    """
    _, kv, where, border, hidden, border_hidden, extra = asked
    grid = (kv.shape[1], kv.shape[2])
    rim = int(not border_hidden and _reaches_out(where, grid))
    if rim:  # one more column of the map stands for all places outside it
        column = border.to(kv.dtype).expand(kv.shape[0], kv.shape[1], 1, *border.shape)
        kv = torch.cat([kv, column], 2)
    for strip in strips(where, grid):
        asking = asked.q[:, strip.windows[0], strip.windows[1]]
        lines, places = strip.keys
        if rim:
            keys = kv[:, lines]
            if _length(places) < grid[1]:
                keys = torch.cat([keys[:, :, places], keys[:, :, -1:]], 2)
        else:
            keys = kv[:, lines, places]
        # (B, rows, columns, 2, h, D) -> (2, B, 1, h, rows * columns, D), a view of whole rows
        k, v = keys.flatten(1, 2).permute(2, 0, 3, 1, 4).unsqueeze(2).unbind(0)
        bias = _bias(strip, where.side, hidden, rim, kv.device)
        if extra is not None:
            more = extra[:, strip.windows[0], strip.windows[1]].flatten(1, 2)
            own = _own_extra(more.shape[1], more.shape[-2], kv.device)
            bias = torch.cat([own.expand(len(bias), -1, -1), bias], -1)
            more = more.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).unsqueeze(2)
            k, v = torch.cat([more[0], k], 3), torch.cat([more[1], v], 3)
        # (B, windows, h, q, D) -> (B, 1, h, windows * q, D)
        flat = asking.flatten(1, 2).transpose(1, 2).flatten(2, 3).unsqueeze(1)
        seen = bias.repeat_interleave(asked.q.shape[4], 1)[:, None, None].to(asked.q.dtype)
        yield strip, flat, k, v, seen


def _bias(strip: Strip, side: int, hidden: Tensor | None, rim: int, device: torch.device) -> Tensor:
    """(B or 1, windows, keys) added to logits: HIDDEN at what a window does not see.

    With ``rim``, the block's last column stands for the places outside the map: its cells share
    their number, as logarithm, among them.
    """
    height, width = (_length(part) for part in strip.keys)
    lines = _within(strip.lines, height, device)
    places = _within(strip.places, width, device)
    seen = (lines[:, None, :, None] & places[None, :, None, :]).flatten(0, 1)
    bias = torch.zeros(seen.shape, device=device).masked_fill(~seen, HIDDEN).unsqueeze(0)
    if hidden is not None:
        unseen = hidden[:, strip.keys[0], strip.keys[1]].unsqueeze(1)
        bias = bias.masked_fill(unseen, HIDDEN)
    if rim:
        outside = [side * side - (b - a) * (d - c) for a, b in strip.lines for c, d in strip.places]
        share = [math.log(count / height) if count else HIDDEN for count in outside]
        column = torch.tensor(share, device=device)[None, :, None, None]
        column = column.expand(bias.shape[0], -1, height, 1)
        bias = torch.cat([bias, column], -1)
    return bias.flatten(2)


def _within(seen: Seen, length: int, device: torch.device) -> Tensor:
    """(len(seen), length): whether a place lies between first and past the last."""
    place = torch.arange(length, device=device)
    ends = torch.tensor(seen, device=device)
    return (place >= ends[:, :1]) & (place < ends[:, 1:])


def _own_extra(windows: int, extra: int, device: torch.device) -> Tensor:
    """(1, windows, windows * extra): 0 at a window's own further keys, HIDDEN at the others'."""
    own = torch.eye(windows, device=device).repeat_interleave(extra, 1)
    return ((1.0 - own) * HIDDEN).unsqueeze(0)


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


def border_seen(
    padding: Padding, grid: tuple[int, int], window: int, target: tuple[int, int]
) -> bool:
    """Whether places over the border of the map are attended.

    ``released`` hides everything alike, so nothing, where its mask covers all of ``target``: where
    there is no padding, and where slices of a small semantic grid reach its other end.

    Args:
        padding: how padding is treated.
        grid: (H, W) of the image tokens.
        window: side of a window of image tokens.
        target: (rows, columns) of the map that the mask indexes.
    """
    below, right = -grid[0] % window, -grid[1] % window
    all_rows, all_columns = (
        not pad or pad >= side for pad, side in zip((below, right), target, strict=True)
    )
    return padding == "attended" or (padding == "released" and all_rows and all_columns)


def released_hidden(
    padding: Padding,
    grid: tuple[int, int],
    window: int,
    target: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor | None, bool]:
    """The padding masks of the released STViT-R detection code, faults included.

    ``attended`` masks nothing. ``released`` masks nothing where there is no padding, not even
    places over the border; with padding along one axis, that strip; along both, the corner alone;
    a mask that covers the whole map hides nothing.

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
    if border_seen(padding, grid, window, target):
        return None, False
    below, right = -grid[0] % window, -grid[1] % window
    mask = torch.zeros(1, *target, dtype=torch.bool, device=device)
    mask[:, -below if below else 0 :, -right if right else 0 :] = True
    return mask, True


def check_padding(padding: str) -> Padding:
    """Raise ValueError unless it is one of the three."""
    if padding not in ("masked", "released", "attended"):
        raise ValueError(f"padding={padding!r}; legal: 'masked', 'released', 'attended'")
    return padding  # type: ignore[return-value]
