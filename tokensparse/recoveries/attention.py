"""Tokens before the reduction ask the reduced ones (STViT-R, arXiv:2303.08685, Sec. 3.4).

Shapes: B batch, N tokens before, M reduced tokens, C channels, h heads, D head dim, R x S windows.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensparse.blocks.cross import CrossBlock
from tokensparse.interfaces import Recovery
from tokensparse.ops.attention import HIDDEN, Form, attend
from tokensparse.ops.cross_windows import (
    Asked,
    Padding,
    attend_windows,
    attended_pairs,
    border_seen,
    centred_windows,
    check_padding,
    released_hidden,
)
from tokensparse.ops.windows import WindowLayout, partition, unpartition
from tokensparse.registry import RECOVERIES
from tokensparse.tokens import TokenMap, Tokens, as_map


@RECOVERIES.register_module()
class AttentionRestore(Recovery):
    """X' = X + MHA(query LN(X), keys and values LN(S)); X' += FFN(LN(X')).

    X are the tokens before the reduction, S the reduced ones.

    With ``window``, as in the released detection code, every window of X asks the ``key_side`` x
    ``key_side`` semantic tokens around its own; S must tile a grid then.

    Args:
        mlp_ratio: hidden channels of the feed-forward as a multiple of C; 0 leaves it out.
        qkv_bias: bias on the projections.
        layer_scale: initial value of a learned scale on both branches, or None (the released
            models: 1e-5).
        drop_path: stochastic depth rate of both branches.
        window: side of a window of X; None lets every token ask all of S.
        key_side: side of a window of S, in semantic tokens.
        padding: what padding of windows does, with ``window``; see ``STGM``.
        attention: form of attention, see ``ops.attention.attend``.
        skip_dim: channels of X where they differ from C; X is then projected.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_tokens: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        window: int | None = None,
        key_side: int = 27,
        padding: Padding = "masked",
        attention: Form | Literal["auto"] = "auto",
        skip_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, grid, num_tokens)
        self.attention: Form | Literal["auto"] = attention
        self.window = window
        self.key_side = key_side
        self.padding = check_padding(padding)
        self.widen = nn.Identity() if skip_dim in (None, dim) else nn.Linear(skip_dim or dim, dim)
        self.block = CrossBlock(dim, num_heads, mlp_ratio, qkv_bias, layer_scale, drop_path)

    def forward(
        self, t: Tokens, skip: Tokens, m: TokenMap | None, grid: tuple[int, int] | None
    ) -> Tokens:
        """N queries, M keys: (B, M, C) -> (B, N, C), or (B, H * W, C) after pooling the queries."""
        x = self.widen(skip.x)
        target = grid if grid is not None else skip.grid
        if grid is not None and skip.grid is not None and grid != skip.grid:
            image = x.transpose(1, 2).unflatten(2, skip.grid)
            x = F.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
        out = self._all(x, t) if self.window is None else self._windowed(x, t, target)
        return as_map(self.block.feed(self.block.add_attention(x, out)), skip, target)

    def _all(self, x: Tensor, t: Tokens) -> Tensor:
        """Every token asks all reduced ones; those of size 0 are hidden."""
        q = self.block.queries(x).transpose(1, 2).unsqueeze(1)
        k, v = self.block.keys_values(t.x).permute(2, 0, 3, 1, 4).unsqueeze(2).unbind(0)
        bias = None
        if t.padded:
            hidden = torch.zeros_like(t.size).masked_fill(t.size == 0, HIDDEN)
            bias = hidden[:, None, None].transpose(-1, -2).to(q.dtype)
        out, _ = attend(q, k, v, bias, form=self.attention)
        return out[:, 0].transpose(1, 2).flatten(2)

    def _windowed(self, x: Tensor, t: Tokens, grid: tuple[int, int] | None) -> Tensor:
        """Windows of X ask larger windows of the semantic grid."""
        if t.grid is None or grid is None or self.window is None:
            raise ValueError(
                "AttentionRestore(window=...) needs reduced tokens that tile a grid (STGM); "
                "leave window out"
            )
        layout = WindowLayout(grid, self.window)
        windows = (layout.padded[0] // self.window, layout.padded[1] // self.window)
        tile = t.grid[0] // windows[0]
        q = partition(self.block.queries(x).flatten(2), layout)
        q = q.unflatten(-1, (self.block.num_heads, -1)).transpose(2, 3).unflatten(1, windows)
        kv = self.block.keys_values(t.x).unflatten(1, t.grid)
        hidden, border_hidden = None, True
        if self.padding != "masked":
            hidden, border_hidden = released_hidden(
                self.padding, grid, self.window, t.grid, x.device
            )
        elif t.padded:
            hidden = (t.size[..., 0] == 0).unflatten(1, t.grid)
        where = centred_windows(windows, tile, self.key_side)
        asked = Asked(q, kv, where, self.block.border(), hidden, border_hidden)
        out = attend_windows(asked, self.attention)
        return unpartition(out.flatten(1, 2).transpose(2, 3).flatten(3), layout)

    def macs(
        self, m: int, n: int, grid_in: tuple[int, int] | None, grid: tuple[int, int] | None
    ) -> int:
        """Projections 2 N C^2 + 2 M C^2, attention 2 N M C (or windows), feed-forward."""
        c = self.dim
        if self.window is None or grid is None:
            return self.block.projection_macs(n, m) + 2 * n * m * c
        layout = WindowLayout(grid, self.window)
        windows = (layout.padded[0] // self.window, layout.padded[1] // self.window)
        assert grid_in is not None
        where = centred_windows(windows, grid_in[0] // windows[0], self.key_side)
        border = border_seen(self.padding, grid, self.window, grid_in)
        pairs = attended_pairs(where, grid_in, border)
        return self.block.projection_macs(n, m + 1) + 2 * self.window**2 * pairs * c
