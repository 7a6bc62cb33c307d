"""Multiply-accumulates as papers print them: what fvcore counts in the authors' code.

Our own count (``analysis.count``) is of what our models execute. Published figures differ from it
in four ways, which this module adds and nothing else:

- LayerNorm counts 5 operations for every value (fvcore; 4 without affine parameters);
- Swin projects the zeros that fill its windows, ours projects real tokens only;
- STGM of the paper projects keys and values after cutting the enlarged windows of layer 1
  (arXiv:2303.08685, Sec. 3.3: the printed costs are met only so), ours before;
- a window of queries multiplies its own keys only, ours those of a whole strip, masked.
"""

from typing import Any

from torch import nn

from tokensparse.analysis.count import run_counted
from tokensparse.analysis.executed import layer_norm_of
from tokensparse.analysis.formula import Grid, formula, step_macs
from tokensparse.blocks.attention import WindowAttention
from tokensparse.blocks.stems import grid_of
from tokensparse.ops.windows import WindowLayout
from tokensparse.plan.counts import StepCount, follow
from tokensparse.recoveries import AttentionRestore
from tokensparse.reducers import STGM


def published_macs(model: nn.Module, size: Grid) -> int:
    """What a paper would print for this model.

    Args:
        model: one of our backbones or a classifier around one, on any device.
        size: (rows, columns) in pixels.

    Returns:
        Multiply-accumulates of one image, LayerNorm included.
    """
    backbone: Any = getattr(model, "backbone", model)
    walk = follow(backbone.plan, grid_of(size, backbone.stem.stride))
    total = sum(formula(model, size).values())
    for row in walk.blocks:
        block = backbone.stages[row.stage].blocks
        if row.kind == "window" and isinstance(block[str(row.block)].attn, WindowAttention):
            layout = WindowLayout(row.grid, block[str(row.block)].attn.window)
            zeros = layout.padded[0] * layout.padded[1] - row.grid[0] * row.grid[1]
            total += 4 * zeros * row_width(block[str(row.block)]) ** 2
    for event in walk.steps:
        total += _published_step(backbone.plan, event) - step_macs(backbone.plan, event)
    return total + layer_norm_operations(model, size)


def row_width(block: nn.Module) -> int:
    """C of a block."""
    width: int = block.attn.proj.in_features  # type: ignore[union-attr,assignment]
    return width


def layer_norm_operations(model: nn.Module, size: Grid) -> int:
    """LayerNorm in fvcore's way: 5 operations for every value, 4 without affine parameters.

    Args:
        model: one of our backbones or a classifier around one.
        size: (rows, columns) in pixels.
    """
    return sum(run_counted(model, size, "meta", layer_norm_of).values())


def _published_step(plan: Any, event: StepCount) -> int:
    step = plan.steps[event.step]
    if event.event == "reduce" and type(step.reduce) is STGM:
        return _stgm(step.reduce, event.n, event.grid_in)
    recovery = step.recover if event.event == "recover" else plan.restore
    if event.event != "reduce" and type(recovery) is AttentionRestore and recovery.window:
        return _recovery(recovery, event.m, event.n, event.grid_out)
    return step_macs(plan, event)


def _stgm(stgm: STGM, n: int, grid: Grid | None) -> int:
    """Windows of keys alone; layer 1 of the paper's and the classification code's projects them."""
    assert grid is not None
    if stgm.window is None:
        return stgm.macs(n, n, grid)
    rows, cols = (-(-side // stgm.window) for side in grid)
    padded, windows, c = rows * cols * stgm.window**2, rows * cols, stgm.dim
    m = windows * stgm.tile**2
    total = 0
    if stgm.init is not None:
        total += windows * stgm.init.macs((stgm.window, stgm.window), stgm.tile)
    for index, block in enumerate(stgm.blocks):
        if stgm.over_border:
            side = stgm.sides[min(index, 1)]
            assert side is not None
            total += block.projection_macs(m, padded) + 2 * m * side**2 * c
        elif index:
            total += block.projection_macs(m, n + m) + 2 * m * (n + m) * c
        else:
            keys = min(stgm.sides[0], *grid) ** 2
            total += block.projection_macs(m, windows * keys + m)
            total += 2 * m * (keys + stgm.tile**2) * c
    return total


def _recovery(recovery: AttentionRestore, m: int, n: int, grid: Grid | None) -> int:
    assert grid is not None and recovery.window is not None
    padded = 1
    for side in grid:
        padded *= -(-side // recovery.window) * recovery.window
    attended = 2 * padded * recovery.key_side**2 * recovery.dim
    return recovery.block.projection_macs(n, m) + attended + 2 * (padded - n) * recovery.dim**2
