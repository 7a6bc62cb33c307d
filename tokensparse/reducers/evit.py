"""EViT: keep the tokens that the class token attends to, fuse the others into one."""

import torch

from tokensparse.interfaces import Reducer
from tokensparse.ops.selection import (
    Score,
    check_count,
    check_keep,
    join,
    kept_map,
    num_kept,
    ranked,
    score_hint,
    select,
)
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, Hints, TokenMap, Tokens


@REDUCERS.register_module()
class EViT(Reducer):
    """Reorganise tokens between attention and feed-forward (EViT, arXiv:2202.07800, Sec. 3.2-3.3).

    Kept tokens come in descending order of score. The others become ONE token, last: their sum
    weighted by the score, not normalised. Nothing changes where ``keep`` equals the number of
    tokens present.

    Args:
        keep: share of the tokens present (float, rounded up) or count (int), fused token not
            counted.
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
        """K kept tokens and the fused one."""
        return min(n, num_kept(self.keep, n) + 1)

    def check(self, n: int, n_start: int) -> None:
        """Refuse a count larger than ``n``."""
        check_count(self.keep, n)

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """Keep K tokens by ``hints.cls_attn`` or ``hints.score`` (B, N), fuse N - K."""
        n = t.x.shape[1]
        k = num_kept(self.keep, n)
        score = getattr(hints, self.hint)
        if k == n:
            index = torch.arange(n, device=t.x.device).expand(t.x.shape[0], -1)
            return t._replace(grid=None), HardMap(index, n) if want_map else None
        index = ranked(score, t, n)
        kept, rest = select(t, index[:, :k]), select(t, index[:, k:])
        weight = score.gather(1, index[:, k:]).unsqueeze(-1) * (rest.size > 0)
        mass = rest.size.sum(1, keepdim=True)
        centre = (rest.pos * rest.size).sum(1, keepdim=True) / mass.clamp(min=1e-6)
        fused = Tokens(
            (rest.x * weight.to(rest.x.dtype)).sum(1, keepdim=True),
            mass,
            centre,
            keep=None if rest.keep is None else rest.keep.amax(1, keepdim=True),
            carry=None if rest.carry is None else rest.carry.mean(1, keepdim=True),
        )
        token_map = HardMap(kept_map(index[:, :k], n, k).slot, k + 1) if want_map else None
        return join(kept, fused), token_map
