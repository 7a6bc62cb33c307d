"""Self-attention over a set of tokens, and in windows of a grid.

Shapes: B batch, N tokens (prefix tokens included), M queries, C channels, h heads, D head dim, W
windows, n places of a window. Queries, keys and values are projected once per token; windows are
cut afterwards.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensparse.ops.attention import HIDDEN, Form, attend
from tokensparse.ops.windows import (
    WindowLayout,
    outside_mask,
    partition,
    partition_heads,
    shift_mask,
    unpartition,
    unpartition_heads,
)


class AttentionInputs(NamedTuple):
    """What attention needs beside the tokens.

    Attributes:
        key_bias: (B, N) added to the logits of each key (log size, hidden padding), or None.
        keep: (B, N, 1) multiplies the softmax numerator, or None.
        layout: the windows, for attention in windows.
        mask: (W, n or 1, n) shift and padding mask of the layout, or None.
        hide_outside: places outside the map are hidden (the mask hides them, too).
        num_prefix: P.
        needs: fields of Hints that are wanted.
        want_attn: the trace wants the attention itself.
        grid: (H, W) while the tokens tile a grid.
    """

    key_bias: Tensor | None = None
    keep: Tensor | None = None
    layout: WindowLayout | None = None
    mask: Tensor | None = None
    hide_outside: bool = False
    num_prefix: int = 0
    needs: frozenset[str] = frozenset()
    want_attn: bool = False
    grid: tuple[int, int] | None = None


class AttentionInfo(NamedTuple):
    """What attention found out about image tokens; None where nobody asked. See ``Hints``."""

    key: Tensor | None = None
    cls_attn: Tensor | None = None
    score: Tensor | None = None
    attn: Tensor | None = None


def layout_mask(layout: WindowLayout, hide_outside: bool, device: torch.device) -> Tensor | None:
    """Additive mask (W, n or 1, n) of a layout: the shift's, and the padding's where hidden."""
    mask = shift_mask(layout, device) if layout.shift != (0, 0) else None
    if hide_outside and layout.is_padded:
        outside = outside_mask(layout, device)
        mask = outside if mask is None else mask + outside
    return mask


class SetAttention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        dim: C.
        num_heads: h, divides C.
        qkv_bias: bias on the query, key and value projection.
        attention: form of attention, see ``ops.attention.attend``.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, attention: Form | str = "auto"
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.num_heads = num_heads
        self.attention = attention
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, given: AttentionInputs, queries: Tensor | None = None
    ) -> tuple[Tensor, AttentionInfo]:
        """Attend.

        Args:
            x: (B, N, C), normalised.
            given: biases and what is wanted.
            queries: (B, M, C), normalised; default ``x``.

        Returns:
            (B, N or M, C) and the info.
        """
        q, k, v = self._project(x, queries)
        bias = self.logit_bias(given)
        bias = None if bias is None else bias.to(q.dtype)
        keep = None if given.keep is None else given.keep[:, None, None, :, 0]
        full = "score" in given.needs and given.num_prefix == 0
        out, attn = attend(
            q, k, v, bias, form=self.attention, keep=keep, want_attn=given.want_attn or full
        )
        info = self._info(q, k, bias, attn, given)
        return self.proj(out.transpose(1, 2).flatten(2)), info

    def logit_bias(self, given: AttentionInputs) -> Tensor | None:
        """(B, 1, 1, N) or what broadcasts with it, added to the logits; None for nothing."""
        return None if given.key_bias is None else given.key_bias[:, None, None]

    def _project(self, x: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, h, N or M, D) queries, (B, h, N, D) keys and values."""
        heads = (-1, self.num_heads, x.shape[-1] // self.num_heads)
        if queries is None:
            qkv = self.qkv(x).view(*x.shape[:-1], 3, *heads[1:])
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        weight, bias = self.qkv.weight, self.qkv.bias
        c = x.shape[-1]
        q = F.linear(queries, weight[:c], None if bias is None else bias[:c])
        kv = F.linear(x, weight[c:], None if bias is None else bias[c:])
        q = q.unflatten(-1, heads[1:]).transpose(1, 2)
        k, v = kv.unflatten(-1, (2, *heads[1:])).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _info(
        self,
        q: Tensor,
        k: Tensor,
        bias: Tensor | None,
        attn: Tensor | None,
        given: AttentionInputs,
    ) -> AttentionInfo:
        p, needs = given.num_prefix, given.needs
        key = k[:, :, p:].mean(1) if "key" in needs else None
        cls_attn = score = None
        if p and needs & {"cls_attn", "score"}:
            row = self._class_row(q, k, bias) if attn is None else attn[:, :, :1]
            cls_attn = row[:, :, 0, p:].mean(1)
            score = cls_attn
        elif "score" in needs and attn is not None:
            score = received(attn.unsqueeze(1), given.key_bias)[:, 0]
        wanted = attn if given.want_attn else None
        return AttentionInfo(key, cls_attn, score, wanted)

    @staticmethod
    def _class_row(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """(B, h, 1, N): the class token's attention, beside a fused kernel that returns none."""
        logits = (q[..., :1, :] * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        return logits.softmax(-1)


def received(attn: Tensor, key_bias: Tensor | None) -> Tensor:
    """Mean attention each key receives, over heads and over the queries that are no padding.

    In windows the sum is divided by the places of a window, so that a neighbour behind the shift
    mask changes nothing.

    Args:
        attn: (B, W, h, n, n).
        key_bias: (B, W * n) or None; half of HIDDEN and less marks padding.

    Returns:
        (B, W, n).
    """
    windows, n = attn.shape[1], attn.shape[-1]
    attn = attn.mean(2)
    if key_bias is None:
        return attn.mean(2)
    real = (key_bias > HIDDEN / 2).to(attn.dtype).view(attn.shape[0], windows, n, 1)
    total = (attn * real).sum(2)
    return total / (n if windows > 1 else real.sum(2).clamp(min=1.0))


class WindowAttention(nn.Module):
    """Self-attention in windows, with a learned position bias (Swin, arXiv:2103.14030, Sec. 3.2).

    Args:
        dim: C.
        num_heads: h, divides C.
        window: side of a window.
        qkv_bias: bias on the query, key and value projection.
        attention: form of attention, see ``ops.attention.attend``.
        position_bias: learn a bias per pair of places and head.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        qkv_bias: bool = True,
        attention: Form | str = "auto",
        position_bias: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.num_heads = num_heads
        self.window = window
        self.attention = attention
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table: nn.Parameter | None = None
        if position_bias:
            table = torch.empty((2 * window - 1) ** 2, num_heads)
            self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
            index = relative_position_index(window).flatten()
            self.register_buffer("relative_position_index", index, persistent=False)
        self._prepared: dict[tuple[WindowLayout, bool], Tensor] = {}

    def forward(self, x: Tensor, given: AttentionInputs) -> tuple[Tensor, AttentionInfo]:
        """Attend in windows.

        Args:
            x: (B, H * W, C), normalised; there are no prefix tokens.
            given: the layout, its mask, and what is wanted.

        Returns:
            (B, H * W, C) and the info.
        """
        layout = given.layout
        assert layout is not None
        q, k, v = self._project(x, layout)
        bias = self.logit_bias(given.mask, layout)
        key_bias = None
        if given.key_bias is not None:
            fill = HIDDEN if given.hide_outside else 0.0
            key_bias = partition(given.key_bias.unsqueeze(-1), layout, fill)[..., 0]
            row = key_bias[:, :, None, None].to(q.dtype)
            bias = row if bias is None else bias + row
        keep = None
        if given.keep is not None:
            keep = partition(given.keep, layout, fill=1.0)[:, :, None, None, :, 0]
        want = given.want_attn or "score" in given.needs
        out, attn = attend(q, k, v, bias, form=self.attention, keep=keep, want_attn=want)
        out = self.proj(unpartition_heads(out, layout))
        key = score = None
        if "key" in given.needs:
            key = unpartition(k.mean(2), layout)
        if "score" in given.needs and attn is not None:
            if key_bias is None and given.hide_outside and layout.is_padded:
                key_bias = outside_mask(layout, x.device)[None, :, 0].expand(x.shape[0], -1, -1)
            flat = None if key_bias is None else key_bias.flatten(1)
            score = unpartition(received(attn, flat).unsqueeze(-1), layout)[..., 0]
        wanted = attn.flatten(1, 2) if attn is not None and given.want_attn else None
        return out, AttentionInfo(key, None, score, wanted)

    def _project(self, x: Tensor, layout: WindowLayout) -> list[Tensor]:
        """Real tokens alone are projected; a zero token's projection is the bias.

        Where nothing is padded, C channels move into windows rather than 3 C.
        """
        if not layout.is_padded:
            qkv = self.qkv(partition(x, layout))
            qkv = qkv.view(*qkv.shape[:-1], 3, self.num_heads, -1)
            return list(qkv.permute(3, 0, 1, 4, 2, 5).unbind(0))
        if self.qkv.bias is None:
            qkv = partition_heads(self.qkv(x), layout, self.num_heads)
        else:
            qkv = partition_heads(F.linear(x, self.qkv.weight), layout, self.num_heads)
            bias = self.qkv.bias.to(qkv.dtype).view(3, 1, 1, self.num_heads, 1, -1)
            qkv.add_(bias)  # a copy of its own, three times the map: not once more
        return list(qkv.unbind(0))

    def logit_bias(self, mask: Tensor | None, layout: WindowLayout) -> Tensor | None:
        """(1, W or 1, h or 1, n, n): position bias plus the layout's mask."""
        prepared = self._prepared.get((layout, mask is not None))
        if prepared is not None and not torch.is_grad_enabled():
            return prepared
        bias = None
        if self.relative_position_bias_table is not None:
            rows = F.embedding(self.relative_position_index, self.relative_position_bias_table)
            bias = rows.unflatten(0, (self.window**2, self.window**2)).permute(2, 0, 1)[None, None]
        if mask is None:
            return bias
        mask = mask[None, :, None]
        return mask if bias is None else bias + mask.to(bias.dtype)

    @torch.no_grad()
    def prepare(self, mask: Tensor | None, layout: WindowLayout) -> None:
        """Compute the bias of one layout ahead of inference; at most two layouts are kept.

        Training, loading and moving forget them; weights changed in place while in eval mode, by
        hand, do not.
        """
        self._prepared.pop((layout, mask is not None), None)
        bias = self.logit_bias(mask, layout)
        if bias is None:
            return
        while len(self._prepared) >= 2:
            self._prepared.pop(next(iter(self._prepared)))
        self._prepared[(layout, mask is not None)] = bias.contiguous()

    def train(self, mode: bool = True) -> "WindowAttention":
        """Training changes the table: what was prepared is forgotten."""
        if mode:
            self._prepared.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "WindowAttention":
        self._prepared.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._prepared.clear()
        super()._load_from_state_dict(*args, **kwargs)


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2): row of the bias table for every pair (query place, key place)."""
    place = torch.arange(window**2)
    row, col = place // window, place % window
    rows = row[:, None] - row[None, :] + window - 1
    cols = col[:, None] - col[None, :] + window - 1
    return rows * (2 * window - 1) + cols
