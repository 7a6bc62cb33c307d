"""AttentionRestore: the tokens before the reduction ask the reduced ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from timm.layers import DropPath, LayerScale, Mlp

from tokensparse.interfaces import Recovery
from tokensparse.ops.attention import HIDDEN, attend
from tokensparse.registry import RECOVERIES
from tokensparse.tokens import TokenMap, Tokens, as_map


@RECOVERIES.register_module()
class AttentionRestore(Recovery):
    """Recovery by cross attention (STViT-R, arXiv:2303.08685, Sec. 3.4).

    X' = X + MHA(query LN(X), keys and values LN(S)); X' += FFN(LN(X')), with X the tokens before and S the reduced ones.

    Args:
        mlp_ratio: hidden channels of the feed-forward as a multiple of C; 0 leaves it out.
        qkv_bias: bias on the projections.
        layer_scale: initial value of a learned scale on both branches, or None (the released models: 1e-5).
        drop_path: stochastic depth rate of both branches.
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
        attention: str = "auto",
        skip_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, grid, num_tokens)
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.attention = attention
        self.widen = nn.Identity() if skip_dim in (None, dim) else nn.Linear(skip_dim or dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.mlp: Mlp | None = None
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio))
            self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(
        self, t: Tokens, skip: Tokens, m: TokenMap | None, grid: tuple[int, int] | None
    ) -> Tokens:
        """N queries, M keys: (B, M, C) -> (B, N, C), or (B, H * W, C) after pooling the queries."""
        x = self.widen(skip.x)
        if grid is not None and skip.grid is not None and grid != skip.grid:
            image = x.transpose(1, 2).unflatten(2, skip.grid)
            x = F.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
        x = x + self.drop_path(self.ls1(self._cross(self.norm1(x), t._replace(x=self.norm1(t.x)))))
        if self.mlp is not None:
            x = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return as_map(x, skip, grid if grid is not None else skip.grid)

    def _cross(self, x: Tensor, t: Tokens) -> Tensor:
        """(B, N, C) asks (B, M, C); tokens of size 0 are hidden."""
        heads = (self.num_heads, self.dim // self.num_heads)
        q = self.q(x).unflatten(-1, heads).transpose(1, 2).unsqueeze(1)
        k, v = self.kv(t.x).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4).unsqueeze(2).unbind(0)
        bias = None
        if t.padded:
            hidden = torch.zeros_like(t.size).masked_fill(t.size == 0, HIDDEN)
            bias = hidden[:, None, None].transpose(-1, -2).to(q.dtype)
        out, _ = attend(q, k, v, bias, form=self.attention)
        return self.proj(out[:, 0].transpose(1, 2).flatten(2))

    def macs(
        self, m: int, n: int, grid_in: tuple[int, int] | None, grid: tuple[int, int] | None
    ) -> int:
        """Projections 2 N C^2 + 2 M C^2, attention 2 N M C, feed-forward; the widening runs on the tokens before."""
        c = self.dim
        total = 2 * n * c * c + 2 * m * c * c + 2 * n * m * c
        if self.mlp is not None:
            total += 2 * n * c * self.mlp.fc1.out_features
        return total

