"""STGM: semantic tokens from pooled and learned centres (STViT, arXiv:2303.08685, Sec. 3.2).

Shapes: B batch, X image tokens on a grid H x W, R x S windows of w x w tokens (one window, the
whole map, without ``window``), s x s semantic tokens a window, M = R S s^2 semantic tokens, C
channels, h heads, D head dim.

Three specifications differ, chosen by ``spec``:

====================  ==================  ==================  ========================
what                  paper               released-cls        released-det
====================  ==================  ==================  ========================
initial centres P     mask and offset     max pooling         max pooling
layer 1, keys         [P; 10 x 10 of X]   [P; 10 x 10 of X]   14 x 14 of X, over border
layer 1, residual     P                   none (shortcut: P)  P
layer 2, keys         [S; X], all         [S; X], all         21 x 21 of X, over border
learned centres G     yes                 option              no
LayerScale            no                  1e-5                1e-5
====================  ==================  ==================  ========================
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensparse.blocks.centres import MaskOffset, max_pooled
from tokensparse.blocks.cross import CrossBlock
from tokensparse.interfaces import Reducer
from tokensparse.ops.attention import HIDDEN, Form, attend
from tokensparse.ops.cross_windows import (
    Asked,
    KeyWindows,
    Padding,
    attend_windows,
    attended_pairs,
    border_seen,
    centred_windows,
    check_padding,
    clamped_windows,
    grown,
    released_hidden,
    window_looks,
)
from tokensparse.ops.resize import resize_positions
from tokensparse.ops.windows import cut_windows, grid_centres, row_major, tiled
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, Hints, TokenMap, Tokens

Spec = Literal["paper", "released-cls", "released-det"]


class Choices(NamedTuple):
    """What a specification fixes, unless said otherwise; see the table above."""

    init: Literal["mask_offset", "max_pool"]
    centres: bool
    shortcut: bool
    layer_scale: float | None
    side1: int
    side2: int | None


SPECS: dict[str, Choices] = {
    "paper": Choices("mask_offset", True, True, None, 10, None),
    "released-cls": Choices("max_pool", False, False, 1e-5, 10, None),
    "released-det": Choices("max_pool", False, True, 1e-5, 14, 21),
}


@REDUCERS.register_module()
class STGM(Reducer):
    """Semantic token generation module; stands for ``num_layers`` blocks.

    Args:
        num_tokens: s^2 semantic tokens of a window, or of the whole map without ``window``.
        window: side of a window; None takes the whole map as one.
        spec: which of the three specifications; the following arguments override it.
        num_layers: layers, at least 2; those after the second repeat it without G.
        init: how the initial centres are made, ``mask_offset`` or ``max_pool``.
        centres: add learned global cluster centres G in layer 2.
        shortcut: add P to the output of layer 1.
        layer_scale: initial value of a learned scale on every branch; None for none.
        mlp_ratio: hidden channels of the feed-forward, as a multiple of C.
        qkv_bias: bias on the projections.
        drop_path: stochastic depth rate, one for all layers or one for each.
        padding: what padding of windows does: ``masked`` (nothing), ``released`` (the detection
            code's mask,
            whose zeros take part) or ``attended`` (the same code without mask).
        attention: form of attention, see ``ops.attention.attend``.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_tokens: int = 9,
        window: int | None = None,
        spec: Spec = "paper",
        num_layers: int = 2,
        init: str | None = None,
        centres: bool | None = None,
        shortcut: bool | None = None,
        layer_scale: float | Literal["spec"] | None = "spec",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float | tuple[float, ...] = 0.0,
        padding: Padding = "masked",
        attention: Form | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(dim, num_heads, grid)
        side = int(num_tokens**0.5 + 0.5)
        if side * side != num_tokens or side < 1:
            raise ValueError(f"num_tokens={num_tokens}; expected a square: 4, 9, 16, 36 ...")
        if spec not in SPECS:
            raise ValueError(f"spec={spec!r}; legal: {sorted(SPECS)}")
        if num_layers < 2:
            raise ValueError(
                f"num_layers={num_layers}; expected at least 2 (arXiv:2303.08685, Table 7)"
            )
        if spec == "released-det" and window is None:
            raise ValueError("spec='released-det' asks windows of the map: set window, as in 7")
        if window is None and side > min(grid):
            raise ValueError(f"num_tokens={num_tokens}: {side} x {side} centres on a {grid} map")
        chosen = SPECS[spec]
        self.tile, self.window, self.num_layers = side, window, num_layers
        self.sides = (chosen.side1, chosen.side2)
        self.over_border = spec == "released-det"
        self.shortcut = chosen.shortcut if shortcut is None else shortcut
        self.padding = check_padding(padding)
        self.attention = attention
        self.init = self._init(init or chosen.init)
        scale = chosen.layer_scale if layer_scale == "spec" else layer_scale
        rates = drop_path if isinstance(drop_path, tuple | list) else (drop_path,) * num_layers
        if len(rates) != num_layers:
            raise ValueError(
                f"drop_path={drop_path}: {len(rates)} rates for num_layers={num_layers}"
            )
        self.layers = nn.ModuleList(
            CrossBlock(dim, num_heads, mlp_ratio, qkv_bias, scale, rate) for rate in rates
        )
        self.centres: nn.Parameter | None = None
        if chosen.centres if centres is None else centres:
            semantic = self._semantic(grid)
            table = torch.empty(1, semantic[0] * semantic[1], dim)
            self.centres = nn.Parameter(nn.init.normal_(table, std=0.02))

    @property
    def blocks(self) -> list[CrossBlock]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, CrossBlock)]

    def _init(self, name: str) -> MaskOffset | None:
        if name == "max_pool":
            return None
        if name != "mask_offset":
            raise ValueError(f"init={name!r}; legal: 'mask_offset', 'max_pool'")
        return MaskOffset(self.dim)

    # -- counts --

    def _layout(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(R, S) windows, and (rows, columns) of image tokens in each."""
        if self.window is None:
            return (1, 1), grid
        return (-(-grid[0] // self.window), -(-grid[1] // self.window)), (self.window, self.window)

    def _semantic(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Semantic grid."""
        (r, s), _ = self._layout(grid)
        return r * self.tile, s * self.tile

    def num_out(self, n: int, n_start: int) -> int:
        """Of a square map; see :meth:`num_out_at`."""
        side = int(n**0.5 + 0.5)
        return self.num_out_at(n, n_start, (side, side) if side * side == n else (1, n))

    def num_out_at(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """M."""
        assert grid is not None
        semantic = self._semantic(grid)
        return semantic[0] * semantic[1]

    def out_grid(self, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        """The semantic grid, row-major."""
        return None if grid is None else self._semantic(grid)

    def pads(self, grid: tuple[int, int] | None) -> bool:
        """Whether a window may hold places outside the map that are masked."""
        if grid is None or self.window is None or self.padding != "masked":
            return False
        return bool(grid[0] % self.window or grid[1] % self.window)

    # -- forward --

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """(B, H * W, C) on a grid -> (B, M, C) on the semantic grid."""
        assert t.grid is not None
        token_map = self._map(t, self._layout(t.grid)[0])
        size = token_map.down(t.size.expand(t.x.shape[0], -1, -1).contiguous())
        s = self._after(len(self.blocks), t, size)
        semantic = self._semantic(t.grid)
        scale = (t.grid[0] / semantic[0], t.grid[1] / semantic[1])
        if self.window is not None:
            scale = (self.window / self.tile, self.window / self.tile)
        pos = grid_centres(semantic, t.x.device) * t.pos.new_tensor(scale)
        carry = None
        if t.carry is not None:
            carry = token_map.down(t.carry * t.size) / size.clamp(min=1e-6)
        out = Tokens(s, size, pos.expand(s.shape[0], -1, -1), semantic, None, carry)
        return out, token_map if want_map else None

    def attention_map(self, t: Tokens) -> Tensor | None:
        """(B, M, N) of the last layer, mean over its heads."""
        assert t.grid is not None
        windows, count = self._layout(t.grid)[0], len(self.blocks)
        size = self._map(t, windows).down(t.size.expand(t.x.shape[0], -1, -1))
        s = self._after(count - 1, t, size)
        if self.over_border:
            looks = window_looks(self._asked_windows(self.blocks[-1], s, t, windows))
            looks = looks[..., : t.grid[0], : t.grid[1]]
            return row_major(looks.flatten(4), self.tile)
        _, q, k, v, bias = self._asked(self.blocks[-1], s, t, size, count == 2)
        _, attn = attend(q, k, v, bias, want_attn=True)
        return None if attn is None else attn[:, 0].mean(1)[..., s.shape[1] :]

    def _after(self, count: int, t: Tokens, size: Tensor) -> Tensor:
        """S (B, M, C) after the first ``count`` layers."""
        assert t.grid is not None
        windows, places = self._layout(t.grid)
        s = row_major(self._first(self._pooled(t, windows, places), t, windows), self.tile)
        for index, layer in enumerate(self.blocks[1:count]):
            if self.over_border:
                s = self._windowed(layer, s, t, windows)
            else:
                s = self._global(layer, s, t, size, index == 0)
        return s

    def _pooled(self, t: Tokens, windows: tuple[int, int], places: tuple[int, int]) -> Tensor:
        """P (B, R, S, s^2, C): spatial initialisation (Sec. 3.2)."""
        assert t.grid is not None
        x = t.x.unflatten(1, t.grid)
        missing = (windows[1] * places[1] - t.grid[1], windows[0] * places[0] - t.grid[0])
        hide = self.padding == "masked" and (t.padded or any(missing))
        valid = None
        if hide:
            valid = (t.size > 0).float().expand(x.shape[0], -1, -1).unflatten(1, t.grid)
            valid = F.pad(valid, (0, 0, 0, missing[0], 0, missing[1]))
            valid = cut_windows(valid, windows)
        if any(missing):
            x = F.pad(x, (0, 0, 0, missing[0], 0, missing[1]))
        x = cut_windows(x, windows)
        pooled: Tensor
        if self.init is None:
            pooled = max_pooled(x, valid, self.tile)
        else:
            pooled = self.init(x, valid, self.tile)
        p: Tensor = pooled.flatten(2).transpose(1, 2).unflatten(0, (t.x.shape[0], *windows))
        return p

    def _keys(self, layer: CrossBlock, t: Tokens) -> tuple[Tensor, Tensor | None, bool]:
        """Keys and values of the map, those that nobody sees, whether the border is unseen."""
        assert t.grid is not None and self.window is not None
        kv = layer.keys_values(t.x).unflatten(1, t.grid)
        if self.padding != "masked":
            padded = self._key_map(t.grid)
            hidden, border = released_hidden(self.padding, t.grid, self.window, padded, t.x.device)
            return grown(kv, padded, layer.border()), hidden, border
        hidden = (t.size[..., 0] == 0).unflatten(1, t.grid) if t.padded else None
        return kv, hidden, True

    def _first(self, p: Tensor, t: Tokens, windows: tuple[int, int]) -> Tensor:
        """STGM-1: S = P + MHA(P, X, X); S += FFN(S)."""
        assert t.grid is not None
        layer = self.blocks[0]
        if self.window is None:
            return self._whole(layer, p, t)
        q = layer.queries(p).transpose(3, 4)
        kv, hidden, border_hidden = self._keys(layer, t)
        where = self._key_windows(t.grid, windows, 0)
        extra = None
        if not self.over_border:  # the pooled tokens of the own window are keys, too
            extra = layer.keys_values(p).permute(0, 1, 2, 4, 5, 3, 6)
        asked = Asked(q, kv, where, layer.border(), hidden, border_hidden, extra)
        out = attend_windows(asked, self.attention)
        out = out.transpose(3, 4).flatten(4)
        return layer.feed(layer.add_attention(p if self.shortcut else None, out))

    def _whole(self, layer: CrossBlock, p: Tensor, t: Tokens) -> Tensor:
        """STGM-1 without windows: P asks X."""
        q = layer.queries(p[:, 0]).transpose(2, 3)
        k, v = layer.keys_values(t.x).permute(2, 0, 3, 1, 4).unsqueeze(2).unbind(0)
        bias = None
        if t.padded:
            bias = torch.zeros_like(t.size[..., 0]).masked_fill(t.size[..., 0] == 0, HIDDEN)
            bias = bias[:, None, None, None].to(q.dtype)
        out, _ = attend(q, k, v, bias, form=self.attention)
        out = out.transpose(2, 3).flatten(3).unsqueeze(1)
        return layer.feed(layer.add_attention(p if self.shortcut else None, out))

    def _key_windows(
        self, grid: tuple[int, int], windows: tuple[int, int], layer: int
    ) -> KeyWindows:
        """Key windows of X in layer 0 and, in the detection code, in those after it."""
        side = self.sides[layer]
        assert self.window is not None and side is not None
        if self.over_border:
            return centred_windows(windows, self.window, side)
        return clamped_windows(grid, self.window, side)

    def _key_map(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the keys: whole windows where padding takes part."""
        if self.window is None or self.padding == "masked":
            return grid
        return tuple(-(-side // self.window) * self.window for side in grid)  # type: ignore

    def _windowed(
        self, layer: CrossBlock, s: Tensor, t: Tokens, windows: tuple[int, int]
    ) -> Tensor:
        """STGM-2 of the detection code: windows of S ask larger windows of X."""
        out = attend_windows(self._asked_windows(layer, s, t, windows), self.attention)
        out = row_major(out.transpose(3, 4).flatten(4), self.tile)
        return layer.feed(layer.add_attention(s, out))

    def _asked_windows(
        self, layer: CrossBlock, s: Tensor, t: Tokens, windows: tuple[int, int]
    ) -> Asked:
        assert t.grid is not None
        q = layer.queries(tiled(s, windows, self.tile)).transpose(3, 4)
        kv, hidden, border_hidden = self._keys(layer, t)
        where = self._key_windows(t.grid, windows, 1)
        return Asked(q, kv, where, layer.border(), hidden, border_hidden)

    def _global(self, layer: CrossBlock, s: Tensor, t: Tokens, size: Tensor, first: bool) -> Tensor:
        """STGM-2: S + G asks [S; X]; G is added to the query and the residual alone."""
        asking, q, k, v, bias = self._asked(layer, s, t, size, first)
        out, _ = attend(q, k, v, bias, form=self.attention)
        return layer.feed(layer.add_attention(asking, out[:, 0].transpose(1, 2).flatten(2)))

    def _asked(
        self, layer: CrossBlock, s: Tensor, t: Tokens, size: Tensor, first: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """S + G; queries of it, keys and values of [S; X], and what hides padding."""
        assert t.grid is not None
        asking = s
        if first and self.centres is not None:
            old, new = self._semantic(self.grid), self._semantic(t.grid)
            asking = s + resize_positions(self.centres, old, new)
        q = layer.queries(asking).transpose(1, 2).unsqueeze(1)
        kv = torch.cat([layer.keys_values(s), layer.keys_values(t.x)], 1)
        k, v = kv.permute(2, 0, 3, 1, 4).unsqueeze(2).unbind(0)
        bias = None
        if t.padded or self.pads(t.grid):
            sizes = torch.cat([size, t.size.expand(size.shape[0], -1, -1)], 1)[..., 0]
            bias = torch.zeros_like(sizes).masked_fill(sizes == 0, HIDDEN)
            bias = bias[:, None, None, None].to(q.dtype)
        return asking, q, k, v, bias

    def _map(self, t: Tokens, windows: tuple[int, int]) -> HardMap:
        """Every image token belongs to the region whose centre starts the semantic token."""
        assert t.grid is not None
        slots = []
        for axis in (0, 1):
            place = torch.arange(t.grid[axis], device=t.x.device)
            if self.window is None:
                slots.append(place * self.tile // t.grid[axis])
            else:
                inside = place % self.window * self.tile // self.window
                slots.append(place // self.window * self.tile + inside)
        semantic = self._semantic(t.grid)
        slot = (slots[0][:, None] * semantic[1] + slots[1]).flatten()
        return HardMap(slot.expand(t.x.shape[0], -1), semantic[0] * semantic[1])

    def macs(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """Projections once per token, attention over key windows, feed-forward, centres."""
        assert grid is not None
        windows, places = self._layout(grid)
        count, c = windows[0] * windows[1], self.dim
        m = count * self.tile**2
        blocks = self.blocks
        total = 0
        if self.init is not None:
            total += count * self.init.macs(places, self.tile)
        for index, block in enumerate(blocks):
            if self.window is None or (index and not self.over_border):
                keys = n + m if index else n
                total += block.projection_macs(m, keys) + 2 * m * keys * c
            else:
                further = 0 if self.over_border else self.tile**2
                where = self._key_windows(grid, windows, min(index, 1))
                keys_at = self._key_map(grid)
                border = border_seen(self.padding, grid, self.window, keys_at)
                pairs = attended_pairs(where, keys_at, border, further)
                total += block.projection_macs(m, n + (m if further else 0) + 1)
                total += 2 * self.tile**2 * pairs * c
        return total
