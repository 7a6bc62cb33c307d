"""Pictures of token steps that explain themselves, by matplotlib.

Shapes: h x w pixels of the image, enlarged to y x x pixels of a panel; H x W patches, P = H * W.
"""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokensparse.analysis.token_maps import (
    DROPPED,
    FUSED,
    KEPT,
    PatchMap,
    cells,
    shares,
    with_before,
)
from tokensparse.analysis.token_paint import (
    View,
    paint_changed,
    paint_through,
    paint_tokens,
    view,
)

#: Heat maps of single tokens in a picture of a soft map, at most.
HEAT_MAPS = 8

#: Attention of single tokens in a picture, at most; with the first five panels three full rows.
ATTENTION_MAPS = 7

#: Panels in a row of the strip over depth, at most.
STRIP_COLUMNS = 7

#: Colour in the legend of patches that share a token.
FUSED_COLOUR = (0.95, 0.55, 0.10)


class Panel(NamedTuple):
    """One small picture with its title.

    Attributes:
        title: one or two lines.
        pixels: (y, x, 3) in 0..1, or (y, x) values that ``scale`` colours.
        scale: (largest value, what it means) for a colour bar from 0, or None.
    """

    title: str
    pixels: np.ndarray
    scale: tuple[float, str] | None = None


def described(patches: PatchMap) -> str:
    """``EViT at block 3: 196 -> 138 tokens``, with the stage where there are several."""
    place = f"stage {patches.stage} block {patches.block}"
    return f"{patches.reducer} at {place}: {patches.before} -> {patches.tokens} tokens"


def step_panels(
    patches: PatchMap, image: np.ndarray, stride: int, before: PatchMap | None = None
) -> list[Panel]:
    """All panels of one step.

    Args:
        patches: of the step.
        image: (h, w, 3) uint8.
        stride: pixels of a patch of the stem.
        before: of the step whose tokens this one got, if any.
    """
    on = view(image, patches.grid, stride)
    panels = [_whole(on, image, patches.grid, stride)]
    after = f"{patches.tokens} tokens after the step"
    if patches.soft:
        panels.append(Panel(f"strongest token of every patch\n{after}", paint_tokens(patches, on)))
        share = patches.share.numpy()[on.place]
        label = f"share of the strongest token\neven shares would be {1 / patches.tokens:.3f}"
        panels.append(Panel(label, share, (float(share.max()), "share of a patch")))
    else:
        what = "what became of the patches" if patches.attn is None else "region of every token"
        panels.append(Panel(f"{what}\n{after}", paint_tokens(patches, on, before)))
        if before is not None:
            title = f"changed by this step\n{int(patches.changed.sum())} patches"
            panels.append(Panel(title, paint_changed(patches, on)))
    title = "mean colour of every token\nspread over its patches"
    title += ", black where dropped" if patches.count(DROPPED) else ""
    panels.append(Panel(title, paint_through(patches, on)))
    if patches.attn is not None:
        panels += attention_panels(patches, patches.attn, on)
    return panels + (heat_panels(patches, on) if patches.soft else [])


def attention_panels(patches: PatchMap, attn: Tensor, on: View) -> list[Panel]:
    """Which token looks most at every patch, by how much, and where the leading tokens look."""
    token = attn.argmax(0)
    most = patches._replace(token=token, fate=torch.full_like(token, FUSED))
    led = torch.bincount(token, minlength=patches.tokens)
    title = f"the token that looks most at each patch\n{int((led > 0).sum())} tokens lead somewhere"
    panels = [Panel(title, paint_tokens(most, on))]
    lead = leads(attn)
    title = f"its lead over the second token\nmean {float(lead.mean()):.3f}; alone it would be 1"
    top = float(lead.max())
    panels.append(Panel(title, lead.numpy()[on.place], (top, "lead, as a share of the first")))
    for index in led.argsort(descending=True, stable=True)[:ATTENTION_MAPS].tolist():
        look = attn[index].numpy()
        title = f"where token {index} looks; even: {1 / attn.shape[1]:.4f}\n"
        title += f"looks most at {int(led[index])} patches"
        panels.append(Panel(title, look[on.place], (float(look.max()), "attention")))
    return panels


def leads(attn: Tensor) -> Tensor:
    """By how much the token that looks most at a patch looks more than the second one.

    Args:
        attn: (M, P) attention of every token.

    Returns:
        (P,) in 0..1, as a share of the first one's attention;
        1 where there is one token alone, 0 at
        patches that nobody looks at.
    """
    if len(attn) == 1:
        return torch.ones_like(attn[0])
    first, second = attn.topk(2, dim=0).values
    return (first - second) / first.clamp(min=1e-12)


def heat_panels(patches: PatchMap, on: View) -> list[Panel]:
    """Where the tokens that lead in most patches take their mass from."""
    led = torch.bincount(patches.token, minlength=patches.tokens + 1)[: patches.tokens]
    chosen = led.argsort(descending=True, stable=True)[:HEAT_MAPS].tolist()
    panels = []
    for token, share in zip(chosen, shares(patches, chosen).numpy().T, strict=True):
        title = f"token {token}: {float(patches.size[token]):.1f} patches in all\n"
        title += f"strongest in {int(led[token])}"
        panels.append(Panel(title, share[on.place], (float(share.max()), "share of a patch")))
    return panels


def legend(patches: PatchMap, before: PatchMap | None = None) -> list[tuple[Any, str]]:
    """(colour or hatching, words) of what a picture shows, with counts of patches."""
    if patches.soft:
        return [(FUSED_COLOUR, "a colour for every token; borders in white")]
    fused, shared = patches.count(FUSED), patches.shared_tokens
    gone = 0 if before is None else before.count(DROPPED)
    ways = f"{shared} tokens, a colour each" if shared > 1 else "one token"
    rows: list[tuple[Any, str]] = [
        ((1.0, 1.0, 1.0), f"kept, a token each: {patches.count(KEPT)} patches")
    ]
    if fused:
        how = "merged" if patches.attn is None else "regions"  # semantic tokens look everywhere
        rows.append((FUSED_COLOUR, f"{how}: {fused} patches in {ways}"))
    empty = int((patches.size == 0).sum())
    if empty:
        rows.append(((0.7, 0.7, 0.7), f"not seen: {empty} tokens of padding"))
    if patches.count(DROPPED):
        rows.append(("///", f"dropped in this step: {patches.count(DROPPED) - gone}"))
    if gone:
        rows.append(("\\\\\\", f"dropped before: {gone}"))
    return rows


def legend_of_all(maps: Sequence[PatchMap]) -> list[tuple[Any, str]]:
    """(colour or hatching, words) of the strip over depth."""
    rows: list[tuple[Any, str]] = [((1.0, 1.0, 1.0), "as in the image: kept, a token each")]
    if any(m.count(FUSED) for m in maps):
        rows.append((FUSED_COLOUR, "coloured, white border: patches that share a token"))
    if any(m.count(DROPPED) for m in maps):
        rows.append(("///", "dropped in this step"))
        rows.append(("\\\\\\", "dropped before"))
    return rows


def depth_panels(maps: Sequence[PatchMap], image: np.ndarray, stride: int) -> list[Panel]:
    """The image, then one panel a step."""
    panels = []
    for patches, before in with_before(maps):
        on = view(image, patches.grid, stride)
        title = f"stage {patches.stage} block {patches.block}: {patches.reducer}\n"
        title += f"{patches.before} -> {patches.tokens} tokens"
        panels.append(Panel(title, paint_tokens(patches, on, before)))
    on = view(image, maps[0].grid, stride)
    return [_whole(on, image, maps[0].grid, stride), *panels]


def _whole(on: View, image: np.ndarray, grid: tuple[int, int], stride: int) -> Panel:
    """The image, and how many patches of how many pixels lie on it."""
    side = max(
        int((cells(length, count, stride) == 0).sum())
        for length, count in zip(image.shape[:2], grid, strict=True)
    )
    title = f"image\n{grid[0]} x {grid[1]} = {grid[0] * grid[1]} patches of {side} px"
    return Panel(title, on.image)


def difference_panels(
    own: Sequence[Tensor], dense: Sequence[Tensor], image: np.ndarray, stride: int
) -> list[Panel]:
    """How far the recovered maps lie from the dense ones.

    Args:
        own: maps (1, C, H, W) of the reduced model.
        dense: those of the dense model with the same weights.
        image: (h, w, 3) uint8.
        stride: pixels of a patch of the stem.
    """
    panels = []
    for index, (a, b) in enumerate(zip(own, dense, strict=True)):
        on = view(image, (a.shape[2], a.shape[3]), stride)
        far = (a - b)[0].norm(dim=0) / b[0].norm(dim=0).mean().clamp(min=1e-12)
        value = far.flatten().numpy()
        title = f"map {index}: {a.shape[1]} x {a.shape[2]} x {a.shape[3]}\n"
        title += f"mean {value.mean():.3f}, largest {value.max():.3f}"
        panels.append(Panel(title, value[on.place], (float(value.max()), "relative difference")))
    return [Panel("image\n", on.image), *panels]


def figure(
    panels: Sequence[Panel],
    title: str,
    columns: int,
    rows_of: Sequence[tuple[Any, str]] = (),
    dpi: int = 100,
) -> Any:
    """Panels in rows, a title above, a legend below.

    Args:
        panels: of one size each.
        title: of the whole.
        columns: panels in a row, at most.
        rows_of: (colour or hatching, words) of the legend.
        dpi: pixels per inch when it is written.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    y, x = panels[0].pixels.shape[:2]
    width = min(2.9, max(1.9, 15.0 / columns))
    taken = 0.8 if any(panel.scale for panel in panels) else 1.0
    height = min(max(taken * width * y / x, 1.0), 2.5 * width) + 0.42
    around = 0.2 * (1 + title.count("\n")) + (0.3 if rows_of else 0.1)
    size = (max(width * columns, 7.0), height * lines + around)
    made = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title, fontsize=10)
    for axes, panel in zip(made.subplots(lines, columns, squeeze=False).flat, panels, strict=False):
        _fill(made, axes, panel)
    for axes in made.axes[len(panels) : lines * columns]:
        axes.set_axis_off()
    if rows_of:
        marks = [
            Patch(facecolor="0.2" if c == "///" else "0.05", edgecolor="0.6", hatch=c)
            if isinstance(c, str)
            else Patch(facecolor=c, edgecolor="black", linewidth=0.6)
            for c, _ in rows_of
        ]
        words = [w for _, w in rows_of]
        made.legend(marks, words, loc="outside lower center", ncols=len(words), fontsize=8)
    return made


def _fill(made: Any, axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=8)
    axes.set(xticks=[], yticks=[])
    if panel.scale is None:
        axes.imshow(panel.pixels, interpolation="antialiased")
        return
    top, meaning = panel.scale
    shown = axes.imshow(panel.pixels, cmap="magma", vmin=0.0, vmax=top or 1.0)
    bar = made.colorbar(shown, cax=axes.inset_axes((1.02, 0.0, 0.04, 1.0)))
    bar.ax.tick_params(labelsize=6)
    bar.set_label(meaning, fontsize=6)


def depth_figure(maps: Sequence[PatchMap], image: np.ndarray, stride: int, title: str) -> Any:
    """The strip over depth, as a figure.

    Args:
        maps: of all steps.
        image: (h, w, 3) uint8.
        stride: pixels of a patch of the stem.
        title: of the whole; the number of steps is added.
    """
    title = f"{title}: {len(maps)} step{'s' * (len(maps) > 1)}"
    return figure(depth_panels(maps, image, stride), title, STRIP_COLUMNS, legend_of_all(maps))


def pixels_of(made: Any) -> np.ndarray:
    """(rows, columns, 3) uint8 of a figure."""
    made.canvas.draw()
    return np.asarray(made.canvas.buffer_rgba())[..., :3].copy()


def png_of(made: Any) -> bytes:
    """A figure as the content of a PNG file."""
    content = BytesIO()
    made.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def write_whole(content: bytes, path: Path) -> None:
    """Write to a second name, then rename: no half picture stays behind.

    Raises:
        OSError: the disk is full, or the folder does not let itself be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
