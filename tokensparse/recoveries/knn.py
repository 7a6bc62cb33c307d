"""KNNRestore: interpolate between the nearest tokens."""

from torch import Tensor

from tokensparse.interfaces import Recovery
from tokensparse.ops.neighbors import nearest
from tokensparse.registry import RECOVERIES
from tokensparse.tokens import TokenMap, Tokens, as_map


@RECOVERIES.register_module()
class KNNRestore(Recovery):
    """Every position is the inverse-distance mean of its k nearest tokens.

    Three-point interpolation is PointNet++'s (arXiv:1706.02413, Sec. 3.4); for dense prediction
    from reduced tokens: Expedit (arXiv:2210.01035).

    Distances are between centres in patch units, ties broken by index; tokens of size 0 are never
    neighbours.

    Args:
        k: neighbours.
        eps: added to squared distances.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_tokens: int,
        k: int = 3,
        eps: float = 1e-6,
        skip_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, grid, num_tokens)
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r}; expected the number of neighbours, an int >= 1")
        self.k = k
        self.eps = eps

    def forward(
        self, t: Tokens, skip: Tokens, m: TokenMap | None, grid: tuple[int, int] | None
    ) -> Tokens:
        """(B, M, C) -> (B, N, C), or (B, H * W, C)."""
        query = skip.pos
        if grid is not None and skip.grid is not None and grid != skip.grid:
            query = as_map(skip.x[:, :1].expand(-1, grid[0] * grid[1], -1), skip, grid).pos
        k = min(self.k, t.x.shape[1])
        distance, index = nearest(query.float(), t.pos.float(), k, t.size[..., 0] == 0)
        weight = 1.0 / (distance + self.eps)
        weight = weight / weight.sum(-1, keepdim=True)
        x = _gather(t.x, index)
        mixed = (x * weight.unsqueeze(-1).to(x.dtype)).sum(2)
        return as_map(mixed, skip, grid if grid is not None else skip.grid)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """(B, M, C), (B, N, k) -> (B, N, k, C)."""
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    gathered: Tensor = x.gather(1, flat).unflatten(1, index.shape[1:])
    return gathered
