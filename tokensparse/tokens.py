"""The data that travels through a reduced backbone: plain tuples of tensors, no parameters.

Shape letters: B batch, N tokens in, M tokens out, C channels, P prefix tokens, H W grid, D head
dim. Everything here is a NamedTuple, because DDP, ``torch.compile`` and activation checkpointing
walk those.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


def scatter_sum(x: Tensor, slot: Tensor, num_slots: int) -> Tensor:
    """Add the tokens of each slot.

    Args:
        x: (B, N, C).
        slot: (B, N), integers in 0..num_slots - 1.
        num_slots: M.

    Returns:
        (B, M, C). Exported graphs use a one-hot matrix product: runtimes refuse scatter with a
        reduction.
    """
    if torch.compiler.is_exporting():
        return F.one_hot(slot, num_slots).to(x.dtype).transpose(1, 2) @ x
    index = slot.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.new_zeros(x.shape[0], num_slots, x.shape[-1]).scatter_add(1, index, x)


class Tokens(NamedTuple):
    """Image tokens; prefix tokens (class, distillation, registers) travel beside them.

    Attributes:
        x: (B, N, C) features.
        size: (B, N, 1) how many patches each token stands for; a detached count, 0 marks padding.
        pos: (B, N, 2) centre (row, column), in patch units.
        grid: (H, W) while the tokens tile a grid in row-major order, else None.
        keep: (B, N, 1) soft pruning while training; carries the gradient and multiplies the softmax
            numerator.
        carry: (B, N, E) per-token state of a method; travels through every map.
        padded: whether tokens of size 0 may be present; plain Python, kept by the loop.
    """

    x: Tensor
    size: Tensor
    pos: Tensor
    grid: tuple[int, int] | None = None
    keep: Tensor | None = None
    carry: Tensor | None = None
    padded: bool = False


def as_map(x: Tensor, skip: Tokens, grid: tuple[int, int] | None) -> Tokens:
    """Tokens of a recovered map.

    Args:
        x: (B, H * W, C), or (B, N, C) where ``grid`` is None.
        skip: the N tokens before the reduction.
        grid: (H, W) of ``x``; sizes and centres are pooled where it is coarser than ``skip.grid``.

    Returns:
        ``x`` with the sizes and centres that belong to it.
    """
    if grid == skip.grid or grid is None or skip.grid is None:
        return skip._replace(x=x)
    cells = torch.cat([skip.size, skip.pos], -1).transpose(1, 2).unflatten(2, skip.grid)
    pooled = F.adaptive_avg_pool2d(cells, grid).flatten(2).transpose(1, 2)
    ratio = skip.grid[0] * skip.grid[1] / (grid[0] * grid[1])
    return Tokens(x, pooled[..., :1] * ratio, pooled[..., 1:], grid, padded=skip.padded)


class Hints(NamedTuple):
    """What a block tells a reducer; a field is computed only where a reducer's ``needs`` names it.

    Attributes:
        key: (B, N, D) attention keys, averaged over heads.
        cls_attn: (B, N) attention of the class token to each image token, averaged over heads.
        score: (B, N) importance: ``cls_attn`` where there is a class token, else the mean attention
            received.
        num_prefix: prefix tokens before the image tokens.
        n_start: image tokens that entered the stage.
    """

    key: Tensor | None = None
    cls_attn: Tensor | None = None
    score: Tensor | None = None
    num_prefix: int = 0
    n_start: int = 0


class TokenMap(Protocol):
    """Who went where. Returned by reducers, never stored on a module."""

    def down(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, C): the SUM over the members of each new token."""

    def up(self, y: Tensor, skip: Tensor) -> Tensor:
        """(B, M, C) -> (B, N, C): the way back; what was dropped comes from ``skip`` (B, N, C)."""


class HardMap(NamedTuple):
    """Prune, fuse, merge: every token goes to one new token or is dropped.

    Attributes:
        slot: (B, N) integers in 0..M; M means dropped.
        num_out: M.
    """

    slot: Tensor
    num_out: int

    def down(self, x: Tensor) -> Tensor:
        """Sum the members of each slot: (B, N, C) -> (B, M, C)."""
        return scatter_sum(x, self.slot, self.num_out + 1)[:, : self.num_out]

    def up(self, y: Tensor, skip: Tensor) -> Tensor:
        """Give members their slot's value: (B, M, C) -> (B, N, C); dropped tokens keep ``skip``."""
        index = self.slot.clamp(max=self.num_out - 1).unsqueeze(-1).expand(-1, -1, y.shape[-1])
        dropped = (self.slot == self.num_out).unsqueeze(-1)
        return torch.where(dropped, skip.to(y.dtype), y.gather(1, index))

    def members(self) -> Tensor:
        """(B, M, N) booleans: which of the N tokens each new one stands for (for pictures)."""
        return self.slot.unsqueeze(1) == torch.arange(
            self.num_out, device=self.slot.device
        ).unsqueeze(-1)


class SoftMap(NamedTuple):
    """How each token's mass is divided among the new ones.

    Attributes:
        share: (B or 1, M, N), not negative, each column sums to 1, detached.
    """

    share: Tensor

    @property
    def num_out(self) -> int:
        """M."""
        return self.share.shape[1]

    def down(self, x: Tensor) -> Tensor:
        """Divide every token's mass: (B, N, C) -> (B, M, C)."""
        return self.share.to(x.dtype) @ x

    def up(self, y: Tensor, skip: Tensor) -> Tensor:
        """Average the new tokens by share: (B, M, C) -> (B, N, C); ``skip`` is unused."""
        return self.share.to(y.dtype).transpose(1, 2) @ y


class WindowMap(NamedTuple):
    """A soft map made in every window of a grid (``reducers/windowed.py``), kept block by block.

    Attributes:
        share: (B or 1, nW, m, n) the map of each window, as in :class:`SoftMap`.
        order: (nW * n,) for each place in the windows, its token (row-major), or N for padding.
        num_tokens: N.
    """

    share: Tensor
    order: Tensor
    num_tokens: int

    @property
    def num_out(self) -> int:
        """M = nW * m."""
        return self.share.shape[1] * self.share.shape[2]

    def down(self, x: Tensor) -> Tensor:
        """Divide every token's mass within its window: (B, N, C) -> (B, nW * m, C)."""
        padded = torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], 1)
        windows: Tensor = padded[:, self.order].unflatten(1, (self.share.shape[1], -1))
        return (self.share.to(x.dtype) @ windows).flatten(1, 2)

    def up(self, y: Tensor, skip: Tensor) -> Tensor:
        """Average the window's new tokens by share: (B, nW * m, C) -> (B, N, C)."""
        windows: Tensor = y.unflatten(1, (self.share.shape[1], -1))
        spread = (self.share.to(y.dtype).transpose(2, 3) @ windows).flatten(1, 2)
        out = spread.new_zeros(y.shape[0], self.num_tokens + 1, y.shape[2])
        return out.index_copy(1, self.order, spread)[:, : self.num_tokens]


class StepRecord(NamedTuple):
    """One reduction, as the trace keeps it (features are left out: they would hold memory).

    Attributes:
        stage: stage of the backbone, 0-based.
        block: block of that stage where the step opened.
        step: index of the step in the plan.
        reducer: class name.
        grid: (H, W) of the tokens before, or None.
        map: N -> M, where maps were asked for.
        size: (B, M, 1) after the step.
        pos: (B, M, 2) after the step.
        keep: (B, M, 1) after the step, or None.
        carry: (B, M, E) after the step, or None.
        within: indices of the steps whose tokens arrived, outermost first; empty where the tokens
            were those of a map.
        attn: (B, M, N) how much every token looks at those before it, where asked for and where the
            reducer works by attention.
    """

    stage: int
    block: int
    step: int
    reducer: str
    grid: tuple[int, int] | None
    map: TokenMap | None
    size: Tensor
    pos: Tensor
    keep: Tensor | None
    carry: Tensor | None
    within: tuple[int, ...] = ()
    attn: Tensor | None = None


class BlockRecord(NamedTuple):
    """One block's attention, where asked for.

    Attributes:
        stage: stage of the backbone.
        block: block of that stage.
        attn: (B, heads, N, N) softmax attention; in windows (B, nW * heads, n, n).
    """

    stage: int
    block: int
    attn: Tensor


class Trace(NamedTuple):
    """What happened to the tokens in one forward, in order."""

    steps: tuple[StepRecord, ...] = ()
    blocks: tuple[BlockRecord, ...] = ()
