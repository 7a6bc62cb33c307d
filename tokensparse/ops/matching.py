"""Bipartite soft matching (ToMe, arXiv:2210.09461, Sec. 3 and Appendix D)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Matching(NamedTuple):
    """Which tokens merge.

    Attributes:
        slot: (B, N) new place of every token, in 0..N - r - 1: unmerged A tokens, then all B
            tokens.
        num_out: N - r.
    """

    slot: Tensor
    num_out: int


def bipartite_matching(metric: Tensor, r: int, num_prefix: int, size: Tensor) -> Matching:
    """Merge the r best proposals of set A (even positions) into set B (odd positions).

    Args:
        metric: (B, N, D); cosine similarity of its rows is compared.
        r: pairs to merge, at most ``len(A)``.
        num_prefix: prefix tokens before these (they count for the alternation, and never merge):
            token i stands at position i + num_prefix.
        size: (B, N, 1); tokens of size 0 (padding) merge first and receive nothing.

    Returns:
        The matching. Unmerged A tokens are in position order where there is a prefix, else in
        descending order of similarity, as in the released code.
    """
    batch, n = metric.shape[:2]
    metric = F.normalize(metric.float(), dim=-1)
    start_a, start_b = num_prefix % 2, 1 - num_prefix % 2
    a, b = metric[:, start_a::2], metric[:, start_b::2]
    num_a = a.shape[1]
    absent = size[..., 0] == 0
    scores = a @ b.transpose(1, 2)
    scores = scores.masked_fill(absent[:, None, start_b::2], -2.0)
    best, partner = scores.max(-1)
    best = best.masked_fill(absent[:, start_a::2], 3.0)
    order = best.argsort(-1, descending=True)
    merged, unmerged = order[:, :r], order[:, r:]
    if num_prefix:
        unmerged = unmerged.sort(-1).values
    rank = torch.arange(num_a - r, device=metric.device).expand(batch, -1)
    slot_a = torch.zeros_like(order).scatter(1, unmerged, rank)
    slot_a = slot_a.scatter(1, merged, num_a - r + partner.gather(1, merged))
    slot_b = torch.arange(num_a - r, n - r, device=metric.device).expand(batch, -1)
    slot = metric.new_empty(batch, n, dtype=torch.long)
    return Matching(_interleave(slot, slot_a, slot_b, start_a), n - r)


def _interleave(like: Tensor, a: Tensor, b: Tensor, start_a: int) -> Tensor:
    """(B, N) whose places start_a, start_a + 2, ... are ``a`` and the others ``b``."""
    index = torch.arange(like.shape[1], device=like.device)
    first, second = (a, b) if start_a == 0 else (b, a)
    joined = torch.cat([first, second], 1)
    place = index // 2 + (index % 2) * first.shape[1]
    return joined[:, place]
