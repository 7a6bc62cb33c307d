"""SparTa: the sparse token converter of SparseSwin."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensparse.interfaces import Reducer
from tokensparse.ops.resize import resize_mixing, sincos_positions
from tokensparse.registry import REDUCERS
from tokensparse.tokens import Hints, SoftMap, TokenMap, Tokens


@REDUCERS.register_module()
class SparTa(Reducer):
    """Sparse token converter (SparseSwin, arXiv:2309.05224, Sec. 3.2).

    A 3 x 3 convolution changes the width; a linear layer over the SPATIAL axis mixes H * W
    positions into ``num_tokens`` tokens. The learned spatial map is resized for other grids, times
    N_old / N_new; at ``grid`` it is used as it is. Its mixes are signed: a token's mass is shared
    by |W|.

    Args:
        num_tokens: t.
        out_dim: channels e of the tokens; default ``dim``. Another width asks for a step that stays
            open.
        position_code: add a fixed sine-cosine code after the convolution (released detection code).
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_tokens: int = 49,
        out_dim: int | None = None,
        position_code: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, grid)
        if not isinstance(num_tokens, int) or num_tokens < 1:
            raise ValueError(f"num_tokens={num_tokens!r}; expected an int >= 1")
        self.num_tokens = num_tokens
        self.out_dim = dim if out_dim is None else out_dim
        self.position_code = position_code
        self.conv = nn.Conv2d(dim, self.out_dim, 3, padding=1)
        self.spatial = nn.Linear(grid[0] * grid[1], num_tokens)

    def num_out(self, n: int, n_start: int) -> int:
        """t, whatever arrives."""
        return self.num_tokens

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """(B, H * W, C) on a grid -> (B, t, e)."""
        assert t.grid is not None
        valid = (t.size > 0).to(t.x.dtype)
        weight = resize_mixing(self.spatial.weight, self.grid, t.grid)
        x = t.x * valid if t.padded else t.x
        x = self.conv(x.transpose(1, 2).unflatten(2, t.grid)).flatten(2)
        if self.position_code:
            x = x + sincos_positions(x.shape[2], self.out_dim, x.device).t().to(x.dtype)
        if t.padded:
            x = x * valid.transpose(1, 2).to(x.dtype)
        tokens = F.linear(x, weight, self.spatial.bias).transpose(1, 2)
        share = _shares(weight)
        size = (share * t.size.transpose(1, 2)).sum(-1, keepdim=True)
        pos = (share.unsqueeze(-1) * (t.size * t.pos).unsqueeze(1)).sum(2) / size.clamp(min=1e-6)
        reduced = Tokens(tokens, size, pos, None, None, self._carried(t.carry, share))
        return reduced, SoftMap(share) if want_map else None

    @staticmethod
    def _carried(carry: Tensor | None, share: Tensor) -> Tensor | None:
        if carry is None:
            return None
        return (share @ carry) / share.sum(-1, keepdim=True).clamp(min=1e-6)

    def macs(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """Convolution 9 N C e, spatial layer N t e."""
        return 9 * n * self.dim * self.out_dim + n * self.num_tokens * self.out_dim

    def map_macs(self, n: int, m: int, grid: tuple[int, int] | None, channels: int) -> int:
        """Every position averages all tokens."""
        return n * m * channels


def _shares(weight: Tensor) -> Tensor:
    """(1, t, N) shares of every position's mass, by |W|; columns sum to 1."""
    magnitude = weight.detach().float().abs()
    total = magnitude.sum(0, keepdim=True)
    even = torch.full_like(magnitude, 1.0 / weight.shape[0])
    return torch.where(total > 0, magnitude / total.clamp(min=1e-20), even).unsqueeze(0)
