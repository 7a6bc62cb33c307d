"""Top-K: keep the most important tokens, drop the rest."""

import torch

from tokensparse.interfaces import Reducer
from tokensparse.ops.selection import (
    Score,
    check_count,
    check_keep,
    kept_map,
    num_kept,
    ranked,
    score_hint,
    select,
)
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, Hints, TokenMap, Tokens


@REDUCERS.register_module()
class TopK(Reducer):
    """Keep the best tokens, by falling score (EViT's baseline, arXiv:2202.07800, Sec. 4).

    Args:
        keep: share of the tokens present (float, rounded up) or count (int).
        score: ``cls_attn`` asks for a class token; ``auto`` falls back to the mean attention
            received.
    """

    where = "inside"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        keep: float = 0.7,
        score: Score = "auto",
    ) -> None:
        super().__init__(dim, num_heads, grid)
        check_keep(keep)
        self.keep = keep
        self.hint = score_hint(score)
        self.needs = frozenset({self.hint})

    def num_out(self, n: int, n_start: int) -> int:
        """See :func:`num_kept`."""
        return num_kept(self.keep, n)

    def check(self, n: int, n_start: int) -> None:
        """Refuse a count larger than ``n``."""
        check_count(self.keep, n)

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """Keep K of N tokens; ``hints.score`` or ``hints.cls_attn`` (B, N) ranks them."""
        n = t.x.shape[1]
        k = num_kept(self.keep, n)
        score = getattr(hints, self.hint)
        if k == n:
            index = torch.arange(n, device=t.x.device).expand(t.x.shape[0], -1)
            return t._replace(grid=None), HardMap(index, n) if want_map else None
        index = ranked(score, t, k)
        return select(t, index), kept_map(index, n, k) if want_map else None
