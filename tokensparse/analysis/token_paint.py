"""Token maps painted on the image, pixel by pixel.

Shapes: h x w pixels of the image, enlarged to y x x pixels of a panel; H x W patches, P = H * W,
M tokens.
"""

import colorsys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokensparse.analysis.token_maps import DROPPED, FUSED, KEPT, PatchMap, cells, through_tokens

#: Pixels of a panel's longer side, at least.
SIDE = 480

#: Dropped patches, by this step and before it: brightness, grey of the hatching, its slope.
DROPPED_NOW, DROPPED_BEFORE = (0.45, 0.5, 1), (0.15, 0.22, -1)


class View(NamedTuple):
    """An image and the patches on it, enlarged for drawing.

    Attributes:
        image: (y, x, 3) in 0..1.
        place: (y, x) patch that each pixel lies in.
        line: thickness of borders in pixels.
    """

    image: np.ndarray
    place: np.ndarray
    line: int


def view(image: np.ndarray, grid: tuple[int, int], stride: int) -> View:
    """Lay the patches of a grid on an image.

    Args:
        image: (h, w, 3) uint8, as the model got it.
        grid: (H, W), which covers the image and the padding that the stem added.
        stride: pixels of a patch of the stem.
    """
    h, w = image.shape[:2]
    zoom = max(1, -(-SIDE // max(h, w)))
    rows, cols = cells(h, grid[0], stride), cells(w, grid[1], stride)
    place = (rows[:, None] * grid[1] + cols).numpy()
    larger = [a.repeat(zoom, 0).repeat(zoom, 1) for a in (image, place)]
    return View(larger[0] / 255.0, larger[1], max(1, round(max(h, w) * zoom / 320)))


def token_colours(token: Tensor, tokens: int) -> np.ndarray:
    """A colour for every token, by the first patch that it stands for.

    Args:
        token: (P,) token of each patch, M where dropped.
        tokens: M.

    Returns:
        (M + 1, 3) in 0..1; hue by the first patch that a token stands for.
    """
    found = np.zeros((tokens + 1, 3))
    first = torch.full((tokens + 1,), len(token)).scatter_reduce(
        0, token, torch.arange(len(token)), "amin"
    )
    for index, patch in enumerate(first.tolist()):
        hue, cycle = (0.08 + patch * 0.61803398875) % 1.0, patch % 3
        found[index] = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.95)[cycle], (0.95, 1.0, 0.75)[cycle])
    return found


def borders(label: np.ndarray, shown: np.ndarray, line: int) -> np.ndarray:
    """(y, x) pixels where neighbouring labels differ and either of the two is shown."""
    found = np.zeros(label.shape, bool)
    for axis in (0, 1):
        here = [slice(None)] * 2
        here[axis], after = slice(None, -1), [slice(None)] * 2
        after[axis] = slice(1, None)
        a, b = tuple(here), tuple(after)
        edge = (label[a] != label[b]) & (shown[a] | shown[b])
        for shift in range(line):
            move = [slice(None)] * 2
            move[axis] = slice(shift, found.shape[axis] - 1)
            cut = [slice(None)] * 2
            cut[axis] = slice(None, edge.shape[axis] - shift)
            found[tuple(move)] |= edge[tuple(cut)]
    return found


def grey(image: np.ndarray) -> np.ndarray:
    """(y, x, 3) without colour."""
    return np.repeat(image.mean(-1, keepdims=True), 3, -1)


def paint_tokens(patches: PatchMap, on: View, before: PatchMap | None = None) -> np.ndarray:
    """Kept patches as they are, tokens of several patches in a colour each, dropped ones dark.

    Args:
        patches: of one step.
        on: its image.
        before: of the step whose tokens this one got; what that one dropped is darker.

    Returns:
        (y, x, 3).
    """
    out, label = on.image.copy(), patches.token.numpy()[on.place]
    fate = patches.fate.numpy()[on.place]
    fused, dropped = fate == FUSED, fate == DROPPED
    colours = token_colours(patches.token, patches.tokens)
    out[fused] = 0.5 * grey(on.image)[fused] + 0.5 * colours[label][fused]
    gone = np.zeros_like(dropped)
    if before is not None:
        gone = (before.fate == DROPPED).numpy()[on.place]
    _hatch(out, dropped & ~gone, on.line, *DROPPED_NOW)
    _hatch(out, dropped & gone, on.line, *DROPPED_BEFORE)
    out[borders(label, fused, on.line)] = 1.0
    out[borders(dropped, dropped, on.line)] = 0.85
    return out


def _hatch(
    out: np.ndarray, where: np.ndarray, line: int, dim: float, tone: float, slope: int
) -> None:
    """Dim some pixels and draw slanting lines over them, seen on black and on white."""
    y, x = np.indices(where.shape)
    lines = (x + slope * y) % (6 * line) < line
    out[where] *= dim
    out[where & lines] = tone


def paint_changed(patches: PatchMap, on: View) -> np.ndarray:
    """What this step merged (in colour) or dropped (red), on a pale image."""
    label, fate = patches.token.numpy()[on.place], patches.fate.numpy()[on.place]
    changed = patches.changed.numpy()[on.place]
    out = 0.55 + 0.45 * grey(on.image)
    merged, dropped = changed & (fate == FUSED), changed & (fate == DROPPED)
    colours = token_colours(patches.token, patches.tokens)
    out[merged] = 0.25 * grey(on.image)[merged] + 0.75 * colours[label][merged]
    out[dropped] = 0.3 * grey(on.image)[dropped] + 0.7 * np.array((0.85, 0.1, 0.1))
    out[borders(label, merged, on.line)] = 0.0
    return out


def paint_through(patches: PatchMap, on: View) -> np.ndarray:
    """The image as its tokens can tell it: each token in the mean colour of its patches."""
    count = len(patches.token)
    sums = np.stack(
        [np.bincount(on.place.ravel(), on.image[..., c].ravel(), count) for c in range(3)], -1
    )
    mean = sums / np.bincount(on.place.ravel(), minlength=count).clip(1)[:, None]
    told = through_tokens(patches, torch.from_numpy(mean)).numpy()[on.place]
    kept = (patches.fate.numpy() == KEPT)[on.place]
    told[kept] = on.image[kept]
    return np.clip(told, 0.0, 1.0)
