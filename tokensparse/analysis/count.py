"""Parameters, multiply-accumulates and tokens of a model, counted in two ways that must agree."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokensparse.analysis.executed import Cost, executed, macs_of
from tokensparse.analysis.formula import formula, step_macs
from tokensparse.backbones.parts import image_size
from tokensparse.blocks.stems import grid_of
from tokensparse.plan.counts import follow


class CountError(RuntimeError):
    """The two counters disagree; the message names the first part where they do."""


@dataclass(frozen=True)
class ModuleRow:
    """One part of the model.

    Attributes:
        name: of the block, step, stem, transition or head.
        params: parameters.
        macs: multiply-accumulates of one image.
    """

    name: str
    params: int
    macs: int


@dataclass(frozen=True)
class BlockRow:
    """One block.

    Attributes:
        stage: stage of the backbone.
        block: block of that stage.
        kind: ``window``, ``local``, ``global`` or ``replaced``.
        tokens_in: image tokens that enter.
        tokens_out: image tokens that leave.
        macs: multiply-accumulates of one image; those of steps have rows of their own.
    """

    stage: int
    block: int
    kind: str
    tokens_in: int
    tokens_out: int
    macs: int


@dataclass(frozen=True)
class StepRow:
    """One reduction or one way back.

    Attributes:
        step: index in the plan.
        event: ``reduce``, ``recover`` (the step's own) or ``restore`` (the plan's).
        tokens_in: image tokens that enter.
        tokens_out: image tokens that leave.
        macs: multiply-accumulates of one image.
    """

    step: int
    event: str
    tokens_in: int
    tokens_out: int
    macs: int


@dataclass(frozen=True)
class Count:
    """What a model costs.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of one image: matrix products and convolutions.
        modules: parts in order, steps of the plan included.
        blocks: blocks in order, with tokens in and out.
        tokens: image tokens that leave every block.
        steps: events of the plan in order; maps that a ViT returns from the middle of a span are no
            event, their cost is in the part ``plan.restore``.
    """

    params: int
    macs: int
    modules: tuple[ModuleRow, ...] = ()
    blocks: tuple[BlockRow, ...] = ()
    tokens: tuple[int, ...] = field(default=())
    steps: tuple[StepRow, ...] = ()


def count(model: nn.Module, input_size: int | Sequence[int] = 224, device: str = "meta") -> Count:
    """Count a backbone or a classifier, by executed operations and by closed formulas.

    Args:
        model: one of our backbones, or a classifier around one.
        input_size: pixels, one side or (rows, columns).
        device: ``meta`` runs a copy without data; ``own`` runs the model where it is.

    Returns:
        The cost of one image.

    Raises:
        CountError: the counters disagree, naming the part.
        TypeError: a model without one of our backbones.
    """
    size = image_size(input_size)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    expected = formula(model, size)
    found = _gather(run_counted(model, size, device), list(expected))
    for name in [*expected, *found]:
        if expected.get(name, 0) != found.get(name, 0):
            raise CountError(
                f"{name or 'outside all parts'}: {found.get(name, 0):,} multiply-accumulates "
                f"were executed at {size[0]} x {size[1]}, the closed formula says "
                f"{expected.get(name, 0):,}. {_remedy(name)}"
            )
    backbone: Any = getattr(model, "backbone", model)
    grid = grid_of(size, backbone.stem.stride)
    before = "backbone." if backbone is not model else ""
    rows = []
    tokens_in = grid[0] * grid[1]
    for row in backbone.plan.preview(grid):
        if row.block == 0:
            tokens_in = row.keys if row.kind != "replaced" else tokens_in
            if backbone.plan.stages[row.stage].transition == "merge":
                tokens_in = _entering(backbone.plan, grid, row.stage)
        macs = expected[f"{before}stages.{row.stage}.blocks.{row.block}"]
        rows.append(BlockRow(row.stage, row.block, row.kind, tokens_in, row.out, macs))
        tokens_in = row.out
    modules = tuple(ModuleRow(n, _params(model, n), m) for n, m in expected.items())
    return Count(
        params=sum(p.numel() for p in model.parameters()),
        macs=sum(expected.values()),
        modules=modules,
        blocks=tuple(rows),
        tokens=tuple(row.tokens_out for row in rows),
        steps=_steps(backbone.plan, grid),
    )


def _remedy(name: str) -> str:
    if "plan." in name:
        return "Mend the `macs` method of that reducer or recovery (tokensparse/interfaces.py)"
    return "Mend that part's formula (tokensparse/analysis/formula.py)"


def _steps(plan: Any, grid: tuple[int, int]) -> tuple[StepRow, ...]:
    rows = []
    for event in follow(plan, grid).steps:
        ends = (event.n, event.m) if event.event == "reduce" else (event.m, event.n)
        rows.append(StepRow(event.step, event.event, *ends, step_macs(plan, event)))
    return tuple(rows)


def _entering(plan: Any, grid: tuple[int, int], stage: int) -> int:
    """Tokens that a merging stage starts with."""
    for spec in plan.stages[1 : stage + 1]:
        if spec.transition == "merge":
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    return grid[0] * grid[1]


def run_counted(
    model: nn.Module, size: tuple[int, int], device: str, cost: Cost = macs_of
) -> dict[str, int]:
    """Run one image in eval mode and count; see :func:`count` and :func:`executed`."""
    if device not in ("meta", "own"):
        raise ValueError(f"device={device!r}; legal: 'meta', 'own'")
    training = [m for m in model.modules() if m.training]
    if device == "meta":
        model = copy.deepcopy(model).to("meta")
    like = next(model.parameters())
    backbone: Any = getattr(model, "backbone", model)
    channels = next(p for p in backbone.stem.parameters() if p.ndim == 4).shape[1]
    try:
        model.eval()
        img = torch.zeros(1, channels, *size, device=like.device, dtype=like.dtype)
        return executed(model, img, cost)
    finally:
        for module in training:
            module.training = True


def _gather(found: dict[str, int], parts: list[str]) -> dict[str, int]:
    """Sum the modules below each part; what belongs to none keeps its name."""
    total: dict[str, int] = {}
    for name, macs in found.items():
        owners = [p for p in parts if name == p or name.startswith(p + ".")]
        owner = max(owners, key=len, default=name)
        total[owner] = total.get(owner, 0) + macs
    return total


def _params(model: nn.Module, name: str) -> int:
    try:
        return sum(p.numel() for p in model.get_submodule(name).parameters())
    except AttributeError:
        return 0
