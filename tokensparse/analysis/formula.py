"""Multiply-accumulates by closed formulas: layer sizes times token counts, nothing is run.

n tokens, C channels, w side of a window. Projections run on real tokens; attention in windows on
whole ones.
"""

from typing import Any

from torch import nn

from tokensparse.backbones.parts import Stage
from tokensparse.blocks.attention import SetAttention, WindowAttention
from tokensparse.blocks.block import Block
from tokensparse.blocks.stems import ConvStem, PatchStem, grid_of
from tokensparse.blocks.transitions import LinearTransition, PatchMerging, half_grid
from tokensparse.plan.counts import BlockCount, StepCount, follow

Grid = tuple[int, int]


def formula(model: nn.Module, size: Grid) -> dict[str, int]:
    """Count a backbone, or a classifier around one.

    Args:
        model: one of our backbones, or a module that holds one as ``backbone`` and otherwise
            linear layers that run once per image.
        size: (rows, columns) in pixels.

    Returns:
        Multiply-accumulates of one image by part: names of blocks, steps, stem, transitions and
        other layers.

    Raises:
        TypeError: a model that is neither.
    """
    backbone: Any = getattr(model, "backbone", model)
    if not hasattr(backbone, "plan") or not hasattr(backbone, "stem"):
        raise TypeError(
            f"{type(backbone).__name__} is no backbone of tokensparse: there is no formula for it"
        )
    before = "backbone." if backbone is not model else ""
    parts = {before + name: macs for name, macs in _backbone(backbone, size).items()}
    if before:
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and not name.startswith("backbone."):
                parts[name] = layer.in_features * layer.out_features
    return parts


def _backbone(backbone: Any, size: Grid) -> dict[str, int]:
    grid = grid_of(size, backbone.stem.stride)
    walk = follow(backbone.plan, grid)
    parts = {"stem": _stem(backbone.stem, grid, size)}
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    entering = grid
    for index, stage in enumerate(backbone.stages):
        assert isinstance(stage, Stage)
        rows = [row for row in walk.blocks if row.stage == index]
        if isinstance(stage.transition, PatchMerging):
            entering = half_grid(entering)
            merged = entering[0] * entering[1]
            parts[f"stages.{index}.transition"] = merged * stage.transition.reduction.weight.numel()
        elif isinstance(stage.transition, LinearTransition):
            weight = stage.transition.reduction.weight
            entered = walk.blocks[walk.blocks.index(rows[0]) - 1].out
            parts[f"stages.{index}.transition"] = entered * weight.numel()
        for row in rows:
            name = f"stages.{index}.blocks.{row.block}"
            parts[name] = 0
            if row.kind != "replaced":
                block = stage.blocks[str(row.block)]
                assert isinstance(block, Block)
                needs = backbone.plan.needs(index, row.block)
                parts[name] = _block(block, row, prefix, needs)
    for event in walk.steps:
        name = part_of(event)
        parts[name] = parts.get(name, 0) + step_macs(backbone.plan, event)
    parts["plan.restore"] = parts.pop("plan.restore", 0) + _side_maps(backbone, walk.blocks)
    return parts


def part_of(event: StepCount) -> str:
    """Name of the module, below the backbone, that runs an event of the plan."""
    return "plan.restore" if event.event == "restore" else f"plan.steps.{event.step}.{event.event}"


def _stem(stem: PatchStem | ConvStem, grid: Grid, size: Grid) -> int:
    places = grid[0] * grid[1]
    if isinstance(stem, PatchStem):
        return places * stem.proj.weight.numel()
    return 4 * places * stem.conv1.weight.numel() + places * stem.conv2.weight.numel()


def _block(block: Block, row: BlockCount, prefix: int, needs: frozenset[str]) -> int:
    """Attention of a block's keys and queries, feed-forward of what is left."""
    c = block.attn.proj.in_features
    keys, queries, feed = row.keys + prefix, row.queries + prefix, row.feed + prefix
    macs = queries * c * c + 2 * keys * c * c + queries * c * c
    if isinstance(block.attn, WindowAttention):
        assert row.grid is not None
        side = block.attn.window
        windows = -(-row.grid[0] // side) * -(-row.grid[1] // side)
        macs += 2 * windows * side**4 * c
    else:
        assert isinstance(block.attn, SetAttention)
        macs += 2 * queries * keys * c
        if prefix and needs & {"cls_attn", "score"}:
            macs += keys * c
    return macs + 2 * feed * c * block.mlp.fc1.out_features


def step_macs(plan: Any, event: StepCount) -> int:
    """Multiply-accumulates of one reduction or one way back.

    Args:
        plan: the plan of a backbone.
        event: what ``plan.counts.follow`` says about it.
    """
    step = plan.steps[event.step]
    if event.event == "reduce":
        return int(step.reduce.macs(event.n, event.n_start, event.grid_in))
    recovery = step.recover if event.event == "recover" else plan.restore
    macs = int(recovery.macs(event.m, event.n, event.grid_in, event.grid_out))
    if recovery.needs_map:
        before = event.before or (event.n, event.grid_out)
        macs += step.reduce.map_macs(before[0], event.m, before[1], step.reduce.out_dim)
    return macs


def _side_maps(backbone: Any, rows: list[BlockCount]) -> int:
    """Maps from the middle of a ViT, restored while the flow goes on reduced."""
    plan = backbone.plan
    if not plan.mid_maps or not plan.restore.needs_map:
        return 0
    total = 0
    for row in rows[:-1]:
        if row.block in backbone.out_indices:
            inner = row.out
            for index, n, grid in reversed(row.open):
                reducer = plan.steps[index].reduce
                total += reducer.map_macs(n, inner, grid, reducer.out_dim)
                inner = n
    return total
