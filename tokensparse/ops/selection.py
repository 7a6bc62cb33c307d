"""Choosing tokens by score: shared by the methods that keep some and drop or fuse the rest."""

import math
from typing import Literal

import torch
from torch import Tensor

from tokensparse.tokens import HardMap, Tokens

Score = Literal["auto", "cls_attn", "score"]


def num_kept(keep: float, n: int) -> int:
    """A float keeps that share of ``n`` tokens, rounded up; an integer that many, at most ``n``."""
    return min(n, keep if isinstance(keep, int) else math.ceil(round(keep * n, 6)))


def check_keep(keep: float) -> None:
    """Raise ValueError unless ``keep`` is a count of at least 1 or a share in (0, 1]."""
    counts = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1
    shares = isinstance(keep, float) and 0.0 < keep <= 1.0
    if not (counts or shares):
        raise ValueError(f"keep={keep!r}; expected a count (int >= 1) or a share (float in (0, 1])")


def check_count(keep: float, n: int) -> None:
    """Raise ValueError where a count asks for more tokens than arrive."""
    if isinstance(keep, int) and keep > n:
        raise ValueError(f"keep={keep}, but only {n} tokens arrive; keep at most {n}")


def score_hint(score: Score) -> str:
    """The field of Hints to read: ``auto`` is the class token's attention where there is one."""
    if score not in ("auto", "cls_attn", "score"):
        raise ValueError(f"score={score!r}; legal: 'auto', 'cls_attn', 'score'")
    return "cls_attn" if score == "cls_attn" else "score"


def select(t: Tokens, index: Tensor) -> Tokens:
    """Gather tokens: ``index`` (B, M)."""

    def take(x: Tensor) -> Tensor:
        return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    size, pos = t.size.expand(*index.shape[:1], -1, -1), t.pos.expand(index.shape[0], -1, -1)
    keep = None if t.keep is None else take(t.keep)
    carry = None if t.carry is None else take(t.carry)
    return Tokens(take(t.x), take(size), take(pos), None, keep, carry)


def ranked(score: Tensor, t: Tokens, k: int) -> Tensor:
    """(B, k) indices of the k highest scores, descending; padding comes last."""
    score = score.float().masked_fill(t.size[..., 0] == 0, -torch.inf)
    return score.topk(k, dim=-1, sorted=True).indices


def kept_map(index: Tensor, n: int, rest: int) -> HardMap:
    """The map of a selection.

    Args:
        index: (B, K) kept tokens.
        n: N.
        rest: slot of all others: K drops them where there are K new tokens.

    Returns:
        HardMap of K tokens; a caller that fuses the rest into slot K raises ``num_out`` by one.
    """
    slot = torch.full((index.shape[0], n), rest, device=index.device, dtype=torch.long)
    place = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return HardMap(slot.scatter(1, index, place), index.shape[1])


def join(a: Tokens, b: Tokens) -> Tokens:
    """Concatenate along the tokens."""
    return Tokens(
        torch.cat([a.x, b.x], 1),
        torch.cat([a.size, b.size], 1),
        torch.cat([a.pos, b.pos], 1),
        None,
        None if a.keep is None or b.keep is None else torch.cat([a.keep, b.keep], 1),
        None if a.carry is None or b.carry is None else torch.cat([a.carry, b.carry], 1),
    )
