"""Scatter: every position gets the token that stands for it."""

from torch.nn import functional as F

from tokensparse.interfaces import Recovery
from tokensparse.registry import RECOVERIES
from tokensparse.tokens import TokenMap, Tokens, as_map


@RECOVERIES.register_module()
class Scatter(Recovery):
    """Follow the map back ("unmerge", ToMe for Stable Diffusion, arXiv:2303.17604, Sec. 3).

    Merged tokens are copied to all their members; dropped ones come from the map before; soft maps
    are averaged by share. A coarser map is pooled from the full one.

    Args:
        skip_dim: channels before the reduction, where the width changed; only soft maps can follow
            that.
    """

    needs_map = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_tokens: int,
        skip_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, grid, num_tokens)

    def forward(
        self, t: Tokens, skip: Tokens, m: TokenMap | None, grid: tuple[int, int] | None
    ) -> Tokens:
        """(B, M, C) -> (B, N, C), or (B, H * W, C)."""
        assert m is not None
        x = m.up(t.x, skip.x)
        if grid is None or skip.grid is None or grid == skip.grid:
            return as_map(x, skip, skip.grid)
        image = x.transpose(1, 2).unflatten(2, skip.grid)
        x = F.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
        return as_map(x, skip, grid)
