"""Step and Plan: the modules of a plan, built once the stages are known."""

from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any, NamedTuple, cast

from torch import nn

from tokensparse.interfaces import Recovery, Reducer
from tokensparse.plan.counts import BlockCount, Grid, follow, refuse_crossing
from tokensparse.plan.syntax import PlanConfig, PlanError, StepSettings, parse_plan
from tokensparse.registry import RECOVERIES, REDUCERS


class StageSpec(NamedTuple):
    """What a plan must know of a stage.

    Attributes:
        dim: channels of the tokens that enter.
        num_heads: heads of its blocks.
        depth: blocks.
        windowed: blocks attend in windows while the tokens tile a grid.
        transition: how tokens come in: ``none``, ``merge`` (2 x 2 neighbours) or ``linear``.
    """

    dim: int
    num_heads: int
    depth: int
    windowed: bool = False
    transition: str = "none"


class BlockSpec(NamedTuple):
    """What a backbone must build.

    Attributes:
        kind: ``window``, ``local``, ``global``, or ``replaced`` (nothing).
        dim: channels.
        tile: side of the windows of a ``local`` block.
        grid: of the reduced tokens in a block inside a step, at the plan's own image size; None
            where they tile none.
    """

    kind: str
    dim: int
    tile: int = 0
    grid: Grid | None = None


class BlockPlan(NamedTuple):
    """What the loop does at a block, looked up once; steps by their index.

    Attributes:
        spec: of the block.
        before: steps that open before it.
        attention: those whose tokens its attention asks with.
        inside: those that open between its attention and its feed-forward.
        closing: those that close after it, innermost first.
        needs: hints that its attention must compute.
    """

    spec: BlockSpec
    before: tuple[int, ...]
    attention: tuple[int, ...]
    inside: tuple[int, ...]
    closing: tuple[int, ...]
    needs: frozenset[str]


class Step(nn.Module):
    """One dumbbell: a reduction, the blocks on fewer tokens, and the way back.

    Args:
        index: place in the plan.
        settings: as written in the config.
        reduce: the reducer.
        recover: the recovery, or None.
    """

    def __init__(
        self, index: int, settings: StepSettings, reduce: Reducer, recover: Recovery | None
    ) -> None:
        super().__init__()
        self.index = index
        self.stage = settings.stage
        self.first, self.last = settings.span
        self.replaces = tuple(sorted(settings.replaces))
        self.inside = settings.inside
        self.allow_expansion = settings.allow_expansion
        self.shrink = settings.shrink
        self.recovers = settings.recover is not None
        self.reduce = reduce
        self.recover = recover

    @property
    def name(self) -> str:
        """Class name of the reducer."""
        return type(self.reduce).__name__

    def wanted_grid(self, grid: Grid | None) -> Grid | None:
        """(H, W) of the recovered map, for the grid before the reduction."""
        if grid is None or self.shrink == 1:
            return grid
        return -(-grid[0] // self.shrink), -(-grid[1] // self.shrink)

    def covers(self, block: int) -> bool:
        """Whether a block of this stage runs on the reduced tokens."""
        first = self.first + (self.reduce.where == "inside")
        return first <= block and (self.last is None or block <= self.last)


class Plan(nn.Module):
    """All steps of a backbone.

    Args:
        cfg: the plan as written in a config.
        stages: the stages of the backbone.
        grid: (H, W) after the stem at the backbone's ``img_size``.
        num_prefix: prefix tokens.
        class_token: whether the first prefix token is a class token.
        map_stages: stages whose map the backbone returns.
        mid_maps: maps are taken from the middle of a stage, too.

    Raises:
        PlanError: a plan that cannot run, naming block, reducer and remedy.
    """

    def __init__(
        self,
        cfg: PlanConfig,
        stages: Sequence[StageSpec],
        grid: Grid,
        num_prefix: int = 0,
        class_token: bool = False,
        map_stages: Sequence[int] = (),
        mid_maps: bool = False,
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.grid = grid
        self.num_prefix = num_prefix
        self.class_token = class_token
        self.map_stages = tuple(map_stages)
        self.mid_maps = mid_maps
        settings, restore = parse_plan(cfg, [stage.depth for stage in stages])
        self.steps = cast(MutableSequence[Step], nn.ModuleList())
        dims = [stage.dim for stage in stages]
        for index, setting in enumerate(settings):
            reducer = self._build_reducer(setting, dims[setting.stage], grid)
            self.steps.append(Step(index, setting, reducer, None))
            self._check_width(self.steps[-1], dims)
        self.out_dims = tuple(dims)
        refuse_crossing(list(self.steps))
        self._check_blocks()
        walk = follow(self, grid, strict=True)
        for event in walk.steps:
            cfg_recover = settings[event.step].recover
            if event.event == "reduce" and cfg_recover is not None:
                step = self.steps[event.step]
                step.recover = self._build_recovery(step, cfg_recover, event.m, event.grid_in)
        self.restore = self._build_restore(restore, grid)
        self._blocks = {
            (index, block): self._block_plan(index, block)
            for index, stage in enumerate(self.stages)
            for block in range(stage.depth)
        }

    # -- what the loop and the backbone ask --

    def at(self, stage: int, block: int) -> BlockPlan:
        """What happens at a block."""
        return self._blocks[stage, block]

    def _block_plan(self, stage: int, block: int) -> BlockPlan:
        before, attention, inside = (
            tuple(step.index for step in self.opening(stage, block, where))
            for where in ("before", "attention", "inside")
        )
        closing = tuple(step.index for step in self.closing(stage, block))
        needs = self.needs(stage, block)
        return BlockPlan(self.block(stage, block), before, attention, inside, closing, needs)

    def opening(self, stage: int, block: int, where: str) -> list[Step]:
        """Steps that open at a block, in order."""
        return [
            s
            for s in self.steps
            if s.stage == stage and s.first == block and s.reduce.where == where
        ]

    def closing(self, stage: int, block: int) -> list[Step]:
        """Steps that close after a block, innermost first."""
        found = [s for s in self.steps if s.stage == stage and s.last == block]
        order = {"before": 0, "attention": 1, "inside": 2}
        found.sort(key=lambda s: (s.first, order[s.reduce.where], s.index), reverse=True)
        return found

    def closes_stage(self, stage: int) -> bool:
        """Whether all steps close at the end of a stage: its map is returned, or merged."""
        merged = stage + 1 < len(self.stages) and self.stages[stage + 1].transition == "merge"
        return merged or (stage in self.map_stages)

    def needs_map(self, step: Step) -> bool:
        """Whether a step's map will be read by a recovery."""
        closes = self._closes(step)
        own = self.restore if step.recover is None else step.recover
        return (closes and own.needs_map) or (self.mid_maps and self.restore.needs_map)

    def may_close(self, step: Step) -> bool:
        """Whether the tokens before a step will be asked for again."""
        return self._closes(step) or self.mid_maps

    def _closes(self, step: Step) -> bool:
        return step.last is not None or step.recovers or self.closes_stage(step.stage)

    def block(self, stage: int, block: int) -> BlockSpec:
        """Kind and width of a block."""
        dim = self.stages[stage].dim
        kind = "window" if self.stages[stage].windowed else "global"
        tile, grid = 0, None
        for step in self.steps:
            if step.stage != stage:
                continue
            if block in step.replaces:
                return BlockSpec("replaced", dim)
            if step.covers(block):
                dim, kind = step.reduce.out_dim, "global"
                grid = step.reduce.out_grid(step.reduce.grid)
                if step.inside:
                    last = self.stages[stage].depth - 1 if step.last is None else step.last
                    built = [b for b in range(step.first, last + 1) if b not in step.replaces]
                    kind = step.inside[built.index(block)]
                    tile = getattr(step.reduce, "tile", 0) if kind == "local" else 0
        return BlockSpec(kind, dim, tile, grid)

    def needs(self, stage: int, block: int) -> frozenset[str]:
        """Hints that a block's attention must compute for reducers in it or before the next."""
        wanted: set[str] = set()
        for step in self.opening(stage, block, "inside"):
            wanted |= step.reduce.needs
        for where in ("before", "attention"):
            for step in self.opening(stage, block + 1, where):
                wanted |= step.reduce.needs
        return frozenset(wanted)

    def counts(self, tokens: int | Grid) -> list[int]:
        """Preview: image tokens that leave every block, all stages in a row.

        Args:
            tokens: (H, W) after the stem, or H * W of a square map.
        """
        return [row.out for row in self.preview(tokens)]

    def preview(self, tokens: int | Grid) -> list[BlockCount]:
        """Token counts of every block; see :class:`BlockCount`."""
        return follow(self, self._grid(tokens)).blocks

    @staticmethod
    def _grid(tokens: int | Grid) -> Grid:
        if not isinstance(tokens, int):
            return tokens[0], tokens[1]
        side = int(tokens**0.5 + 0.5)
        return (side, side) if side * side == tokens else (1, tokens)

    # -- building --

    def _build_reducer(self, step: StepSettings, dim: int, grid: Grid) -> Reducer:
        stage = self.stages[step.stage]
        reducer: Reducer = build_part(
            REDUCERS,
            step.reduce,
            dim=dim,
            num_heads=stage.num_heads,
            grid=self._grid_at(step, grid),
        )
        where = f"{type(reducer).__name__} (stage {step.stage}, block {step.span[0]})"
        if "cls_attn" in reducer.needs and not self.class_token:
            raise PlanError(
                f"{where}: its score is the class token's attention, but this backbone has no "
                "class token; use score='auto' (mean attention received), or a backbone with "
                "class_token=True"
            )
        if reducer.where == "inside" and step.span[0] in step.replaces:
            raise PlanError(f"{where}: works inside block {step.span[0]}, so it cannot replace it")
        if reducer.where != "inside" and reducer.needs and step.span[0] == 0:
            raise PlanError(
                f"{where}: works before its block and reads {sorted(reducer.needs)} of the block "
                "before, but there is none; open it at block 1 or later"
            )
        return reducer

    def _grid_at(self, step: StepSettings | Step, grid: Grid) -> Grid:
        for stage in self.stages[1 : step.stage + 1]:
            if stage.transition == "merge":
                grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
        return grid

    def _check_width(self, step: Step, dims: list[int]) -> None:
        if step.reduce.out_dim == dims[step.stage]:
            return
        name = f"{step.name} (stage {step.stage}, block {step.first})"
        last_stage = step.stage + 1 == len(self.stages)
        if step.last is not None or not (
            last_stage or self.stages[step.stage + 1].transition != "merge"
        ):
            raise PlanError(
                f"{name}: changes the width from {dims[step.stage]} to {step.reduce.out_dim}, "
                "so its step must stay open to the end of a stage that no merging follows: "
                "span=(first, None)"
            )
        if self.num_prefix:
            raise PlanError(
                f"{name}: changes the width from {dims[step.stage]} to {step.reduce.out_dim}, "
                f"but the {self.num_prefix} prefix tokens keep theirs; "
                "use a backbone without class token"
            )
        dims[step.stage] = step.reduce.out_dim

    def _check_blocks(self) -> None:
        """A 'local' block needs tokens that tile a grid; hints need an undisturbed block before."""
        for step in self.steps:
            if "local" in step.inside and not getattr(step.reduce, "tile", 0):
                raise PlanError(
                    f"{step.name} (stage {step.stage}, block {step.first}): its tokens tile no "
                    "grid, so a block inside cannot be 'local'; use inside=('global', ...)"
                )
            if step.reduce.where == "inside" or not step.reduce.needs:
                continue
            before = step.first - 1
            disturbed = self.closing(step.stage, before) or self.opening(
                step.stage, before, "inside"
            )
            if disturbed or self.block(step.stage, before).kind == "replaced":
                raise PlanError(
                    f"{step.name} (stage {step.stage}, block {step.first}): "
                    f"reads {sorted(step.reduce.needs)} of block {before}, but the tokens "
                    "change there; open it one block later"
                )

    def _build_recovery(
        self, step: Step, cfg: Mapping[str, Any], num_tokens: int, grid: Grid | None
    ) -> Recovery:
        dim, before = step.reduce.out_dim, step.reduce.dim
        extra = {} if dim == before else {"skip_dim": before}
        recovery: Recovery = build_part(
            RECOVERIES,
            cfg,
            dim=dim,
            num_heads=self.stages[step.stage].num_heads,
            grid=step.wanted_grid(grid) or self._grid_at(step, self.grid),
            num_tokens=num_tokens,
            **extra,
        )
        return recovery

    def _build_restore(self, cfg: Mapping[str, Any], grid: Grid) -> Recovery:
        stage = self.stages[0]
        restore: Recovery = build_part(
            RECOVERIES, cfg, dim=stage.dim, num_heads=stage.num_heads, grid=grid, num_tokens=1
        )
        if any(True for _ in restore.parameters()):
            raise PlanError(
                f"plan.restore: {type(restore).__name__} has parameters; restore serves every "
                "step, so it must have none (Scatter, KNNRestore). Give the step a 'recover' of "
                "its own"
            )
        return restore


def _class_of(registry: Any, cfg: Mapping[str, Any]) -> Any:
    return cfg["type"] if isinstance(cfg["type"], type) else registry.get(cfg["type"])


def build_part(registry: Any, cfg: Mapping[str, Any], **given: Any) -> Any:
    """Build a reducer or recovery; a wrong setting is refused naming the part and the settings."""
    cls = _class_of(registry, cfg)
    own = {key: value for key, value in cfg.items() if key != "type"}
    clash = sorted(set(own) & set(given))
    if clash:
        raise PlanError(
            f"{cls.__name__}: {clash} come from the backbone; leave them out of the plan"
        )
    try:
        return cls(**given, **own)
    except TypeError as error:
        raise PlanError(f"{cls.__name__}: {error}; settings: {own}") from error
    except ValueError as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{cls.__name__}: {error}") from error
