"""LinearRestore: a learned map from tokens to positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensparse.interfaces import Recovery
from tokensparse.ops.resize import resize_positions, resize_tokens
from tokensparse.registry import RECOVERIES
from tokensparse.tokens import TokenMap, Tokens, as_map


@RECOVERIES.register_module()
class LinearRestore(Recovery):
    """Linear layers over the TOKEN axis, M tokens -> H * W positions.

    With ``hidden`` it is SparseSwin's token-to-spatial converter (arXiv:2309.05224, released
    detection code): an MLP with a GELU after both layers. Other grids resize the rows of the last
    layer as position embeddings are resized; other token counts resize the columns of the first,
    times M_old / M.

    Args:
        hidden: hidden units of the MLP, 0 for one linear layer.
        pre_norm: a layer norm over the channels first.
        final_act: GELU after the last layer (with ``hidden``).
        skip_dim: channels before the reduction (unused: nothing of the old map is read).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_tokens: int,
        hidden: int = 0,
        pre_norm: bool = False,
        final_act: bool = True,
        skip_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, grid, num_tokens)
        places = grid[0] * grid[1]
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()
        self.hidden = hidden
        self.final_act = final_act and hidden > 0
        if hidden:
            self.fc1 = nn.Linear(num_tokens, hidden)
            self.fc2 = nn.Linear(hidden, places)
        else:
            self.fc = nn.Linear(num_tokens, places)

    def forward(
        self, t: Tokens, skip: Tokens, m: TokenMap | None, grid: tuple[int, int] | None
    ) -> Tokens:
        """(B, M, C) -> (B, H * W, C)."""
        count = skip.x.shape[1] if grid is None else grid[0] * grid[1]
        x = self.norm(t.x)
        if t.padded:
            x = x * (t.size > 0).to(x.dtype)
        x = x.transpose(1, 2)
        last = self.fc2 if self.hidden else self.fc
        weight, bias = _rows(last, self.grid, grid, count)
        if self.hidden:
            x = F.gelu(F.linear(x, resize_tokens(self.fc1.weight, x.shape[2]), self.fc1.bias))
        else:
            weight = resize_tokens(weight, x.shape[2])
        x = F.linear(x, weight, bias)
        if self.final_act:
            x = F.gelu(x)
        return as_map(x.transpose(1, 2), skip, grid if grid is not None else skip.grid)

    def macs(
        self, m: int, n: int, grid_in: tuple[int, int] | None, grid: tuple[int, int] | None
    ) -> int:
        """C M hidden + C hidden N, or C M N."""
        if self.hidden:
            return self.dim * self.hidden * (m + n)
        return self.dim * m * n


def _rows(
    layer: nn.Linear, old: tuple[int, int], grid: tuple[int, int] | None, count: int
) -> tuple[Tensor, Tensor]:
    """Weight (count, K) and bias (count,) of a layer whose rows are positions."""
    rows = torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1).unsqueeze(0)
    if grid is None:
        old, grid = (1, old[0] * old[1]), (1, count)
    rows = resize_positions(rows, old, grid)[0]
    return rows[:, :-1], rows[:, -1]
