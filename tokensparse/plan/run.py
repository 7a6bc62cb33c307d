"""The one loop that runs every plan.

Per block: ``before`` steps, attention, ``inside`` steps, feed-forward, closing steps. State travels
as values: a :class:`Flow` goes in and a new one comes out.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokensparse.blocks.attention import AttentionInputs, layout_mask
from tokensparse.blocks.block import Block
from tokensparse.ops.attention import HIDDEN
from tokensparse.ops.windows import WindowLayout, shifted_layout
from tokensparse.plan.build import BlockPlan, Plan, Step
from tokensparse.tokens import BlockRecord, Hints, StepRecord, TokenMap, Tokens, Trace


class Open(NamedTuple):
    """A step that waits to be closed.

    Attributes:
        step: index in the plan.
        skip: the N tokens before.
        map: N -> M, where somebody will read it.
        proportional: later attention adds log(size) while it is open.
    """

    step: int
    skip: Tokens
    map: TokenMap | None
    proportional: bool = False


class Flow(NamedTuple):
    """What travels through the loop.

    Attributes:
        x: (B, P + N, C) prefix and image tokens in one tensor.
        tokens: the image tokens' size, pos, grid, keep and carry; its ``x`` is left empty (see
            ``image``).
        num_prefix: P.
        stack: steps that are open, outermost first.
        trace: what happened so far.
        collect: what the trace is to hold: ``maps``, ``step_attn``, ``attn``, or ``attn:3`` of
            stage 3 alone.
        within: steps whose tokens these are, outermost first; a linear transition to the next stage
            empties ``stack``, but not this.
    """

    x: Tensor
    tokens: Tokens
    num_prefix: int = 0
    stack: tuple[Open, ...] = ()
    trace: Trace = Trace()
    collect: frozenset[str] = frozenset()
    within: tuple[int, ...] = ()

    def image(self) -> Tokens:
        """The image tokens, as a view."""
        return self.tokens._replace(x=self.x[:, self.num_prefix :])

    def with_image(self, t: Tokens) -> "Flow":
        """New image tokens behind the same prefix."""
        x = t.x
        if self.num_prefix:
            x = torch.cat([self.x[:, : self.num_prefix].to(x.dtype), x], 1)
        return self._replace(x=x, tokens=t._replace(x=x.new_empty(x.shape[0], 0, x.shape[2])))


class Windows(NamedTuple):
    """Window geometry of one stage at one size.

    Attributes:
        plain: layout and mask of unshifted blocks.
        shifted: layout and mask of shifted blocks.
        hide_outside: padding is hidden from attention.
    """

    plain: tuple[WindowLayout, Tensor | None]
    shifted: tuple[WindowLayout, Tensor | None]
    hide_outside: bool = False


def run_stage(
    plan: Plan,
    stage: int,
    blocks: Mapping[str, nn.Module],
    flow: Flow,
    windows: Windows | None = None,
    checkpoint_blocks: bool = False,
    after_block: Callable[[int, Flow], None] | None = None,
) -> Flow:
    """Run the blocks of one stage with its steps.

    Args:
        plan: the plan.
        stage: which stage.
        blocks: block index (as text) -> :class:`Block`; replaced blocks are absent.
        flow: what comes in.
        windows: geometry for blocks in windows.
        checkpoint_blocks: recompute activations in the backward pass.
        after_block: called with the block's index and the flow, for maps in the middle of a stage.

    Returns:
        The flow at the end of the stage; open steps are closed where the stage's map is needed.
    """
    n_start = flow.x.shape[1] - flow.num_prefix
    hints = Hints(num_prefix=flow.num_prefix, n_start=n_start)
    for index in range(plan.stages[stage].depth):
        block = blocks[str(index)] if str(index) in blocks else None
        flow, hints = _run_block(plan, stage, index, block, flow, hints, windows, checkpoint_blocks)
        for step in plan.at(stage, index).closing:
            while flow.stack and flow.stack[-1].step != step:
                flow = close_last(plan, flow)
            flow = close_last(plan, flow)
        if after_block is not None:
            after_block(index, flow)
    if plan.closes_stage(stage):
        return close_all(plan, flow)
    while any(plan.steps[opened.step].recovers for opened in flow.stack):
        flow = close_last(plan, flow)
    return flow


def _run_block(
    plan: Plan,
    stage: int,
    index: int,
    block: nn.Module | None,
    flow: Flow,
    hints: Hints,
    windows: Windows | None,
    checkpoint_blocks: bool,
) -> tuple[Flow, Hints]:
    here = plan.at(stage, index)
    for step in here.before:
        flow = _open(plan, plan.steps[step], flow, hints)
    keys = flow
    for step in here.attention:
        flow = _open(plan, plan.steps[step], flow, hints)
    if block is None:
        return flow, Hints(num_prefix=flow.num_prefix, n_start=hints.n_start)
    assert isinstance(block, Block)
    given = _inputs(here, stage, index, keys, windows)
    queries = flow.x if here.attention else None
    x, info = _maybe_checkpoint(checkpoint_blocks, block.attend, keys.x, given, queries)
    flow = flow._replace(x=x)
    if info.attn is not None:
        record = BlockRecord(stage, index, info.attn)
        flow = flow._replace(trace=Trace(flow.trace.steps, (*flow.trace.blocks, record)))
    hints = Hints(info.key, info.cls_attn, info.score, flow.num_prefix, hints.n_start)
    for step in here.inside:
        flow = _open(plan, plan.steps[step], flow, hints)
    x = _maybe_checkpoint(checkpoint_blocks, block.feed, flow.x)
    return flow._replace(x=x), hints


def _maybe_checkpoint(active: bool, run: Callable[..., Any], *args: Any) -> Any:
    if active and torch.is_grad_enabled():
        return checkpoint(run, *args, use_reentrant=False)
    return run(*args)


def _inputs(
    here: BlockPlan, stage: int, index: int, flow: Flow, windows: Windows | None
) -> AttentionInputs:
    """What a block's attention needs, from the tokens that are its keys."""
    spec = here.spec
    layout, mask = None, None
    if spec.kind == "window":
        assert windows is not None
        layout, mask = windows.shifted if index % 2 else windows.plain
    elif spec.kind == "local":
        assert flow.tokens.grid is not None
        layout = WindowLayout(flow.tokens.grid, spec.tile)
    keep = flow.tokens.keep
    if keep is not None and flow.num_prefix:
        keep = torch.cat([keep.new_ones(keep.shape[0], flow.num_prefix, 1), keep], 1)
    return AttentionInputs(
        key_bias=_key_bias(flow),
        keep=keep,
        layout=layout,
        mask=mask,
        hide_outside=windows is not None and windows.hide_outside,
        num_prefix=flow.num_prefix,
        needs=here.needs,
        want_attn=bool(flow.collect & {"attn", f"attn:{stage}"}),
        grid=flow.tokens.grid,
    )


def _key_bias(flow: Flow) -> Tensor | None:
    """(B, P + N): log(size) while a proportional step is open, HIDDEN at padding; None for none."""
    proportional = any(opened.proportional for opened in flow.stack)
    if not proportional and not flow.tokens.padded:
        return None
    size = flow.tokens.size[..., 0]
    bias = size.clamp(min=1e-6).log() if proportional else torch.zeros_like(size)
    bias = bias.masked_fill(size == 0, HIDDEN)
    if flow.num_prefix:
        bias = torch.cat([bias.new_zeros(bias.shape[0], flow.num_prefix), bias], 1)
    return bias


def _open(plan: Plan, step: Step, flow: Flow, hints: Hints) -> Flow:
    skip = flow.image()
    want_map = "maps" in flow.collect or plan.needs_map(step)
    tokens, token_map = step.reduce(skip, hints, want_map)
    tokens = tokens._replace(padded=skip.padded or step.reduce.pads(skip.grid))
    kept = skip if plan.may_close(step) else skip._replace(x=skip.x.new_empty(0))
    record = StepRecord(
        stage=step.stage,
        block=step.first,
        step=step.index,
        reducer=step.name,
        grid=skip.grid,
        map=token_map if "maps" in flow.collect else None,
        size=tokens.size,
        pos=tokens.pos,
        keep=tokens.keep,
        carry=tokens.carry,
        within=flow.within,
        attn=step.reduce.attention_map(skip) if "step_attn" in flow.collect else None,
    )
    return flow.with_image(tokens)._replace(
        stack=(*flow.stack, Open(step.index, kept, token_map, step.reduce.proportional)),
        trace=Trace((*flow.trace.steps, record), flow.trace.blocks),
        within=(*flow.within, step.index),
    )


def close_last(plan: Plan, flow: Flow, own: bool = True) -> Flow:
    """Bring the innermost open step's tokens back.

    Args:
        plan: the plan.
        flow: with at least one open step.
        own: use the step's own recovery where it has one; else the plan's parameter-free
            ``restore``.

    Returns:
        The flow with the full map behind the prefix.
    """
    opened = flow.stack[-1]
    step = plan.steps[opened.step]
    skip, t = opened.skip, flow.image()
    grid = step.wanted_grid(skip.grid)
    recovery = step.recover if own and step.recover is not None else plan.restore
    assert isinstance(recovery, nn.Module)
    recovered = recovery(t, skip, opened.map, grid)
    carry = t.carry
    if carry is not None and opened.map is not None and grid == skip.grid:
        before = (
            carry.new_zeros(*skip.x.shape[:2], carry.shape[-1])
            if skip.carry is None
            else skip.carry
        )
        carry = opened.map.up(carry, before)
    else:
        carry = skip.carry
    recovered = recovered._replace(keep=skip.keep, carry=carry, padded=skip.padded)
    return flow.with_image(recovered)._replace(stack=flow.stack[:-1], within=flow.within[:-1])


def close_all(plan: Plan, flow: Flow, own: bool = True) -> Flow:
    """Close every open step, innermost first."""
    while flow.stack:
        flow = close_last(plan, flow, own)
    return flow


def stage_windows(
    grid: tuple[int, int],
    window: int,
    rule: str,
    hide_outside: bool,
    device: torch.device,
) -> Windows:
    """Layouts and masks of a stage, made once for all of its blocks.

    Args:
        grid: (H, W) of the stage.
        window: side of a window.
        rule: see ``ops.windows.shifted_layout``.
        hide_outside: padding is hidden from attention (``window_padding='masked'``).
        device: of the masks.

    Returns:
        Geometry of plain and shifted blocks.
    """
    plain, shifted = (shifted_layout(grid, window, odd, rule) for odd in (False, True))
    return Windows(
        (plain, layout_mask(plain, hide_outside, device)),
        (shifted, layout_mask(shifted, hide_outside, device)),
        hide_outside,
    )
