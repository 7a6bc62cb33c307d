"""The block in which some tokens ask others: STGM's layers and the recovery."""

import torch
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn


class CrossBlock(nn.Module):
    """x' = q + attention(norm1(q), norm1(kv)); x' += mlp(norm2(x')).

    The attention itself is left to the caller.

    One norm serves queries and keys (released STViT-R). Queries, and keys and values, are projected
    by separate layers.

    Args:
        dim: C.
        num_heads: h, divides C.
        mlp_ratio: hidden channels of the feed-forward as a multiple of C; 0 leaves it out.
        qkv_bias: bias on the projections.
        layer_scale: initial value of a learned scale on both branches, or None.
        drop_path: stochastic depth rate of both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.dim = dim
        self.num_heads = num_heads
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

    def queries(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., h, D)."""
        return self.q(self.norm1(x)).unflatten(-1, (self.num_heads, -1))

    def keys_values(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 2, h, D)."""
        return self.kv(self.norm1(x)).unflatten(-1, (2, self.num_heads, -1))

    def border(self) -> Tensor:
        """(2, h, D): key and value of a zero token, whose norm is the norm's bias."""
        zero = torch.zeros(1, self.dim, device=self.q.weight.device, dtype=self.q.weight.dtype)
        return self.keys_values(zero)[0]

    def add_attention(self, residual: Tensor | None, out: Tensor) -> Tensor:
        """First half: project what attention gave (..., C), scale, add to ``residual`` if any."""
        out = self.ls1(self.proj(out))
        return out if residual is None else residual + self.drop_path(out)

    def feed(self, x: Tensor) -> Tensor:
        """Second half: (..., C) -> (..., C)."""
        if self.mlp is None:
            return x
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def projection_macs(self, queries: int, keys: int) -> int:
        """Multiply-accumulates of projections and feed-forward."""
        c = self.dim
        macs = 2 * queries * c * c + 2 * keys * c * c
        if self.mlp is not None:
            macs += 2 * queries * c * self.mlp.fc1.out_features
        return macs
