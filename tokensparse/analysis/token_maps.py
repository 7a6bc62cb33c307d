"""What became of every patch, step by step: read off the trace alone, whatever the reducer.

A step that opens while another is open reduces tokens that already stand for several patches; its
map is followed back through theirs to the map (H, W) that the outermost of them reduced. The cells
of that map are called patches here: patches of a ViT, cells of a stage of a Swin.

Shapes: B images, N tokens before a step, M after it, P = H * W patches, K channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokensparse.analysis.baseline import dense_of
from tokensparse.registry import MODELS
from tokensparse.tokens import HardMap, StepRecord, TokenMap, Trace

#: Fates of a patch; each patch has exactly one of them.
KEPT, FUSED, DROPPED = 0, 1, 2

#: Shares that differ from 0 or 1 by less than this count as 0 or 1.
TOLERANCE = 1e-4

#: Tokens whose shares are spread over the patches at once.
CHUNK = 256


class Chain(NamedTuple):
    """The maps between patches and tokens.

    Attributes:
        maps: from the outermost open step's to the last one.
        counts: tokens before each map; P first.
        batch: B.
        device: of the maps.
    """

    maps: tuple[TokenMap, ...]
    counts: tuple[int, ...]
    batch: int
    device: torch.device

    def up(self, y: Tensor) -> Tensor:
        """Spread over the patches: (B, M, K) -> (B, P, K); 0 where no token stands for a patch."""
        for m, n in zip(reversed(self.maps), reversed(self.counts), strict=True):
            y = m.up(y, y.new_zeros(self.batch, n, y.shape[2]))
        return y

    def down(self, x: Tensor) -> Tensor:
        """Sum over the members of each token: (B, P, K) -> (B, M, K)."""
        for m in self.maps:
            x = m.down(x)
        return x

    def full(self, x: Tensor) -> Tensor:
        """(N, K) -> (B, N, K) on the device of the maps."""
        return x.to(self.device).expand(self.batch, -1, -1).contiguous()


class PatchMap(NamedTuple):
    """Every patch of one image after one step.

    Attributes:
        stage: of the backbone.
        block: of that stage, where the step opened.
        step: index in the plan.
        reducer: class name.
        within: steps that were open already, outermost first.
        grid: (H, W) patches of the outermost step's map.
        before: N.
        tokens: M.
        soft: some map on the way divides patches among tokens.
        token: (P,) the token that stands for each patch (the strongest, where ``soft``); M where
            the patch is dropped.
        share: (P,) how much of the patch that token holds: 1 for hard maps, 0 where dropped.
        fate: (P,) ``KEPT``: the patch has a token of its own; ``FUSED``: it shares tokens with
            other patches; ``DROPPED``: no token holds any of it.
        changed: (P,) whether this very step merged or dropped the token that held the patch.
        size: (M,) patches that each token stands for, as the trace has it.
        chain: the maps that lead here.
        image: place of the image in the batch.
        attn: (M, P) how much every token looks at the patches, or None: not asked for, no attention
            made them, or the step got tokens of another.
    """

    stage: int
    block: int
    step: int
    reducer: str
    within: tuple[int, ...]
    grid: tuple[int, int]
    before: int
    tokens: int
    soft: bool
    token: Tensor
    share: Tensor
    fate: Tensor
    changed: Tensor
    size: Tensor
    chain: Chain
    image: int
    attn: Tensor | None = None

    def count(self, fate: int) -> int:
        """Patches of one fate."""
        return int((self.fate == fate).sum())

    @property
    def shared_tokens(self) -> int:
        """Tokens that are the strongest of some fused patch."""
        return len(self.token[self.fate == FUSED].unique())


@torch.no_grad()
def patch_maps(trace: Trace, image: int = 0) -> list[PatchMap]:
    """Follow every step back to the patches of one image.

    Args:
        trace: of ``backbone.forward_tokens(img, collect=frozenset({"maps"}))``.
        image: place in the batch.

    Returns:
        One map a step, in the order of the trace; on the CPU.

    Raises:
        ValueError: the trace holds no maps, or the first tokens tile no grid.
    """
    seen: dict[int, StepRecord] = {}
    found = []
    for record in trace.steps:
        seen[record.step] = record
        found.append(_patch_map([seen[step] for step in (*record.within, record.step)], image))
    return found


def with_before(maps: Sequence[PatchMap]) -> list[tuple[PatchMap, PatchMap | None]]:
    """Each map with that of the step whose tokens it got, where that was open."""
    own: dict[int, PatchMap] = {}
    found = []
    for patches in maps:
        found.append((patches, own[patches.within[-1]] if patches.within else None))
        own[patches.step] = patches
    return found


def _patch_map(records: Sequence[StepRecord], image: int) -> PatchMap:
    record, grid = records[-1], records[0].grid
    where = f"{record.reducer} (stage {record.stage}, block {record.block})"
    if grid is None:
        raise ValueError(f"{where}: the tokens before it tile no grid, so they cannot be drawn")
    maps = tuple(r.map for r in records if r.map is not None)
    if len(maps) != len(records):
        raise ValueError(
            f"{where}: the trace holds no map of it; run forward_tokens(img, "
            "collect=frozenset({'maps'}))"
        )
    counts = (grid[0] * grid[1], *(r.size.shape[1] for r in records[:-1]))
    batch, tokens = record.size.shape[:2]
    chain = Chain(maps, counts, batch, record.size.device)
    soft = not all(isinstance(m, HardMap) for m in maps)
    if soft:
        token, share = _strongest(chain, tokens)
    else:
        token = _followed([m for m in maps if isinstance(m, HardMap)])
        share = (token < tokens).float()
    fate = _fates(chain, token, share, tokens)
    found = (token, share, fate, _changed(chain), record.size[..., 0].float())
    own = (x[image].detach().cpu() for x in found)
    place = (record.stage, record.block, record.step, record.reducer, record.within)
    attn = None
    if record.attn is not None and not record.within:
        attn = record.attn[image].detach().float().cpu()
    return PatchMap(*place, grid, counts[-1], tokens, soft, *own, chain, image, attn)


def _followed(maps: Sequence[HardMap]) -> Tensor:
    """(B, P) token of each patch after hard maps; M where it is dropped on the way."""
    slot = maps[0].slot
    for m in maps[1:]:
        table = torch.cat([m.slot, m.slot.new_full((m.slot.shape[0], 1), m.num_out)], 1)
        slot = table.gather(1, slot)
    return slot


def _strongest(chain: Chain, tokens: int) -> tuple[Tensor, Tensor]:
    """(B, P) token with the largest share of each patch, and that share; a few tokens at a time."""
    place = torch.zeros(chain.batch, chain.counts[0], dtype=torch.long, device=chain.device)
    share = place - 1.0
    for start in range(0, tokens, CHUNK):
        one_hot = torch.zeros(tokens, min(CHUNK, tokens - start))
        one_hot[start : start + CHUNK].fill_diagonal_(1.0)
        top, index = chain.up(chain.full(one_hot)).max(-1)
        place = torch.where(top > share, index + start, place)
        share = torch.maximum(share, top)
    nowhere = share < TOLERANCE / tokens
    return place.masked_fill(nowhere, tokens), share.masked_fill(nowhere, 0.0)


def _fates(chain: Chain, token: Tensor, share: Tensor, tokens: int) -> Tensor:
    """(B, P) fates: a token that holds one whole patch and nothing else keeps that patch."""
    mass = chain.down(chain.full(torch.ones(chain.counts[0], 1)))[..., 0]
    held = mass.gather(1, token.clamp(max=tokens - 1))
    alone = (share > 1 - TOLERANCE) & (held < 1 + TOLERANCE)
    return torch.where(alone, KEPT, FUSED).masked_fill(token == tokens, DROPPED)


def _changed(chain: Chain) -> Tensor:
    """(B, P) whether the last map merged or dropped the token of a patch; all, where it is soft."""
    last = chain.maps[-1]
    changed = chain.full(torch.ones(chain.counts[-1], 1))
    if isinstance(last, HardMap):
        changed = last.up((last.down(changed) > 1).float(), changed)
    earlier = chain._replace(maps=chain.maps[:-1], counts=chain.counts[:-1])
    return earlier.up(changed)[..., 0] > 0.5


@torch.no_grad()
def shares(patches: PatchMap, tokens: Sequence[int]) -> Tensor:
    """How much of every patch some tokens hold.

    Args:
        patches: of one step.
        tokens: K of them, in 0..M - 1.

    Returns:
        (P, K) in 0..1; all tokens together hold 1 of a patch, or less where some of it is dropped.
    """
    one_hot = torch.zeros(patches.tokens, len(tokens))
    one_hot[list(tokens), range(len(tokens))] = 1.0
    spread = patches.chain.up(patches.chain.full(one_hot))
    return spread[patches.image].cpu()


@torch.no_grad()
def through_tokens(patches: PatchMap, values: Tensor) -> Tensor:
    """Every patch's value as its tokens tell it: averaged into tokens, and spread again.

    Args:
        patches: of one step.
        values: (P, K) of the patches, such as their mean colours.

    Returns:
        (P, K); 0 where a patch is dropped.
    """
    chain = patches.chain
    held = chain.down(chain.full(torch.cat([values, torch.ones_like(values[:, :1])], 1).float()))
    mean = held[..., :-1] / held[..., -1:].clamp(min=1e-6)
    mean = torch.cat([mean, torch.ones_like(mean[..., :1])], -1)
    spread = chain.up(mean)[patches.image].cpu()
    whole: Tensor = spread[:, :-1] / spread[:, -1:].clamp(min=1e-6)
    return whole


def cells(length: int, count: int, stride: int) -> Tensor:
    """The cell that every pixel along one axis lies in.

    Args:
        length: pixels.
        count: cells along the axis.
        stride: pixels of a patch of the stem; cells are as large, or twice, four times ..., the
            last one cut by the border. Where no such cell fits, they divide the axis evenly.

    Returns:
        (length,) in 0..count - 1.
    """
    side = stride
    while -(-length // side) > count:
        side *= 2
    place = torch.arange(length)
    return place // side if -(-length // side) == count else place * count // length


def dense_twin(
    settings: Mapping[str, Any], backbone: nn.Module, more: Mapping[str, Tensor] | None = None
) -> nn.Module | str:
    """The dense backbone with the same weights.

    Args:
        settings: of the backbone, with ``type``.
        backbone: built from them.
        more: weights of the dense one that the backbone lacks, such as bias tables of windows.

    Returns:
        The same backbone without a plan, in eval mode; or, in words, why there is none.
    """
    dense_settings = {**settings, "plan": None} if "plan" in settings else dense_of(settings)
    dense = MODELS.build(dense_settings)
    state = {k: v for k, v in backbone.state_dict().items() if not k.startswith("plan.")}
    state.update(more or {})
    own = dense.state_dict()
    lacking = [k for k in own if k not in state]
    left = [k for k in state if k not in own]
    unlike = [k for k in own if k in state and own[k].shape != state[k].shape]
    for keys, reason in (
        (lacking, "the dense model has weights that this one lacks"),
        (left, "this model has weights that the dense one lacks"),
        (unlike, "weights have another shape in the dense model"),
    ):
        if keys:
            more = "" if len(keys) == 1 else f" and {len(keys) - 1} more"
            return f"{reason}: {keys[0]}{more}"
    dense.load_state_dict(state)
    return dense.eval()
