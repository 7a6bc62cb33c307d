"""The transformer block, cut where reducers work: attention, then feed-forward."""

from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from tokensparse.blocks.attention import (
    AttentionInfo,
    AttentionInputs,
    SetAttention,
    WindowAttention,
)


class Block(nn.Module):
    """Pre-norm transformer block: x += attention(norm1(x)); x += mlp(norm2(x)).

    Args:
        dim: C.
        attn: attention of the block.
        mlp_ratio: hidden channels of the feed-forward, as a multiple of C.
        drop_path: stochastic depth rate of both branches.
        norm_eps: eps of both layer norms.
        final_act: a second GELU after the feed-forward's second layer (released SparseSwin).
        layer_scale: initial value of a learned scale on both branches, or None.
    """

    def __init__(
        self,
        dim: int,
        attn: SetAttention | WindowAttention,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        final_act: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.final_act = nn.GELU() if final_act else nn.Identity()
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def attend(
        self, x: Tensor, given: AttentionInputs, queries: Tensor | None = None
    ) -> tuple[Tensor, AttentionInfo]:
        """First half.

        Args:
            x: (B, N, C).
            given: biases, windows, and what is wanted.
            queries: (B, M, C) fewer tokens that attend to ``x`` in its place.

        Returns:
            (B, N or M, C) with the residual added, and what attention found out.
        """
        if queries is None:
            out, info = self.attn(self.norm1(x), given)
            return x + self.drop_path(self.ls1(out)), info
        if not isinstance(self.attn, SetAttention):
            raise TypeError("fewer queries than keys need attention over a set, not in windows")
        out, info = self.attn(self.norm1(x), given, self.norm1(queries))
        return queries + self.drop_path(self.ls1(out)), info

    def feed(self, x: Tensor) -> Tensor:
        """Second half: (B, N, C) -> (B, N, C)."""
        return x + self.drop_path(self.ls2(self.final_act(self.mlp(self.norm2(x)))))
