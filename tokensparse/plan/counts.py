"""Follow token counts through a plan: plain Python, no tensors. Refuses what cannot run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tokensparse.blocks.transitions import half_grid
from tokensparse.plan.syntax import PlanError

if TYPE_CHECKING:
    from tokensparse.plan.build import Plan, Step

#: Unwindowed pairwise matching over more tokens than this is refused.
MAX_PAIRWISE = 4096

Grid = tuple[int, int]


class BlockCount(NamedTuple):
    """Image tokens of one block (prefix tokens not counted).

    Attributes:
        stage: stage of the backbone.
        block: block of that stage.
        kind: ``window``, ``local``, ``global``, or ``replaced`` where it is not built.
        keys: tokens that attention reads.
        queries: tokens that attention writes.
        feed: tokens in the feed-forward.
        out: tokens that leave the block, after steps that close there.
        grid: (H, W) of the tokens in attention, or None.
        open: steps that are open when the block ends, outermost first: (index, tokens before, grid
            before).
    """

    stage: int
    block: int
    kind: str
    keys: int
    queries: int
    feed: int
    out: int
    grid: Grid | None
    open: tuple[tuple[int, int, Grid | None], ...] = ()


class StepCount(NamedTuple):
    """Image tokens of one reduction or recovery.

    Attributes:
        step: index in the plan.
        event: ``reduce``, ``recover`` (the step's own) or ``restore`` (the plan's).
        n: tokens of the larger side.
        m: tokens of the smaller side.
        n_start: tokens that entered the stage.
        grid_in: (H, W) of what goes in, or None.
        grid_out: (H, W) of what comes out, or None.
        before: tokens and grid before the reduction, for a way back.
    """

    step: int
    event: str
    n: int
    m: int
    n_start: int
    grid_in: Grid | None
    grid_out: Grid | None
    before: tuple[int, Grid | None] | None = None


@dataclass
class Walk:
    """State of the walk, and what it has seen."""

    n: int
    grid: Grid | None
    n_start: int = 0
    stack: list[tuple[int, int, Grid | None]] = field(default_factory=list)
    blocks: list[BlockCount] = field(default_factory=list)
    steps: list[StepCount] = field(default_factory=list)

    def open(self, step: "Step") -> None:
        """A reduction."""
        m = step.reduce.num_out_at(self.n, self.n_start, self.grid)
        out_grid = step.reduce.out_grid(self.grid)
        event = StepCount(step.index, "reduce", self.n, m, self.n_start, self.grid, out_grid)
        self.steps.append(event)
        self.stack.append((step.index, self.n, self.grid))
        self.n, self.grid = m, out_grid

    def close(self, plan: "Plan") -> None:
        """The innermost open step comes back."""
        index, n, grid = self.stack.pop()
        step = plan.steps[index]
        wanted = step.wanted_grid(grid)
        out = n if wanted is None else wanted[0] * wanted[1]
        event = "recover" if step.recovers else "restore"
        before = (n, grid)
        self.steps.append(
            StepCount(index, event, out, self.n, self.n_start, self.grid, wanted, before)
        )
        self.n, self.grid = out, wanted


def follow(plan: "Plan", grid: Grid, strict: bool = False) -> Walk:
    """Walk a plan.

    Args:
        plan: the plan.
        grid: (H, W) after the stem.
        strict: refuse what does not fit (when built; a running model takes any size).

    Returns:
        Counts of every block and step, in order.

    Raises:
        PlanError: where ``strict``; names block, reducer and remedy.
    """
    walk = Walk(grid[0] * grid[1], grid)
    for index, stage in enumerate(plan.stages):
        if stage.transition == "merge":
            assert walk.grid is not None
            walk.grid = half_grid(walk.grid)
            walk.n = walk.grid[0] * walk.grid[1]
        elif stage.transition == "linear":
            walk.stack.clear()
        walk.n_start = walk.n
        for block in range(stage.depth):
            _follow_block(plan, walk, index, block, strict)
        if plan.closes_stage(index):
            while walk.stack:
                walk.close(plan)
        else:
            while any(plan.steps[index].recovers for index, _, _ in walk.stack):
                walk.close(plan)
    return walk


def _follow_block(plan: "Plan", walk: Walk, stage: int, block: int, strict: bool) -> None:
    spec = plan.block(stage, block)
    keys = walk.n
    grid = walk.grid
    for where in ("before", "attention", "inside"):
        if where == "attention":
            keys, grid = walk.n, walk.grid
        if where == "inside":
            queries = walk.n
        for step in plan.opening(stage, block, where):
            if strict:
                _refuse(plan, walk, step)
            walk.open(step)
    feed = walk.n
    for step in plan.closing(stage, block):
        while walk.stack and walk.stack[-1][0] != step.index:
            walk.close(plan)
        walk.close(plan)
    walk.blocks.append(
        BlockCount(stage, block, spec.kind, keys, queries, feed, walk.n, grid, tuple(walk.stack))
    )


def _refuse(plan: "Plan", walk: Walk, step: "Step") -> None:
    """Raise PlanError where a step does not fit the tokens that arrive."""
    name = f"{step.name} (stage {step.stage}, block {step.first})"
    if step.reduce.needs_grid and walk.grid is None:
        raise PlanError(
            f"{name}: needs tokens that tile a grid, but an open step took the grid away; "
            "close that step before this block"
        )
    if step.reduce.pairwise and walk.n > MAX_PAIRWISE:
        raise PlanError(
            f"{name}: pairwise matching over {walk.n} tokens, more than {MAX_PAIRWISE}; wrap it: "
            f"dict(type='Windowed', window=7, reducer=dict(type={step.name!r}, ...))"
        )
    try:
        step.reduce.check(walk.n, walk.n_start)
        m = step.reduce.num_out_at(walk.n, walk.n_start, walk.grid)
    except ValueError as error:
        raise PlanError(f"{name}: {error}") from error
    if m < 1:
        raise PlanError(f"{name}: {m} tokens out of {walk.n}; keep at least one")
    if m > walk.n and not step.allow_expansion:
        raise PlanError(
            f"{name}: {m} tokens out, but only {walk.n} arrive; ask for at most {walk.n}, use a "
            "larger img_size, or set allow_expansion=True on the step"
        )


def refuse_crossing(steps: Sequence["Step"]) -> None:
    """Raise PlanError where the spans of two steps of a stage cross."""
    for outer in steps:
        for inner in steps:
            if inner is outer or inner.stage != outer.stage:
                continue
            if outer.last is None or inner.last is None:
                continue
            starts_within = outer.first <= inner.first <= outer.last
            if starts_within and inner.last > outer.last and inner.index > outer.index:
                raise PlanError(
                    f"{inner.name}: span ({inner.first}, {inner.last}) crosses span "
                    f"({outer.first}, {outer.last}) of {outer.name} in stage {outer.stage}; "
                    f"close it at block {outer.last} or earlier, "
                    f"or open it at block {outer.last + 1}"
                )
