"""Any reducer, in every window of the grid."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokensparse.interfaces import Reducer
from tokensparse.ops.windows import WindowLayout, partition
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, Hints, SoftMap, TokenMap, Tokens, WindowMap


@REDUCERS.register_module()
class Windowed(Reducer):
    """Run a reducer in every window: local, linear in the tokens, and every region keeps some.

    Grids that windows do not divide are padded at the right and bottom with tokens of size 0.

    Args:
        reducer: settings of the reducer, with ``type``.
        window: side of a window.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        reducer: Mapping[str, Any],
        window: int = 7,
    ) -> None:
        super().__init__(dim, num_heads, grid)
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window={window!r}; expected the side of a window, an int >= 1")
        self.window = window
        self.reducer = inner = _built(reducer, dim, num_heads, window)
        if "cls_attn" in inner.needs:
            raise ValueError(
                f"{type(inner).__name__} ranks by the class token, which no window holds; "
                "use score='auto'"
            )
        self.where = inner.where
        self.needs = inner.needs
        self.proportional = inner.proportional
        self.out_dim = inner.out_dim
        self.tile = getattr(inner, "tile", 0)

    def _layout(self, grid: tuple[int, int]) -> WindowLayout:
        return WindowLayout(grid, self.window)

    def num_out(self, n: int, n_start: int) -> int:
        """Of a square map; see :meth:`num_out_at`."""
        side = int(n**0.5 + 0.5)
        return self.num_out_at(n, n_start, (side, side) if side * side == n else (1, n))

    def num_out_at(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """Windows times the tokens that each keeps."""
        assert grid is not None
        places = self.window**2
        return self._layout(grid).num_windows * self.reducer.num_out(places, places)

    def check(self, n: int, n_start: int) -> None:
        """Ask the reducer about one window."""
        self.reducer.check(self.window**2, self.window**2)

    def out_grid(self, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        """The semantic grid, where the reducer's tokens tile each window."""
        if grid is None or not self.tile:
            return None
        h, w = self._layout(grid).padded
        return h // self.window * self.tile, w // self.window * self.tile

    def pads(self, grid: tuple[int, int] | None) -> bool:
        """Whether windows reach over the map's edge."""
        return grid is not None and self._layout(grid).is_padded

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """(B, H * W, C) on a grid -> (B, W * m, C), window after window."""
        assert t.grid is not None
        layout = self._layout(t.grid)
        batch, windows = t.x.shape[0], layout.num_windows

        def cut(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            x = partition(x.expand(batch, -1, -1), layout)
            return x.flatten(0, 1)

        def glue(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            split: Tensor = x.expand(batch * windows, -1, -1).unflatten(0, (batch, windows))
            return split.flatten(1, 2)

        inner_hints = Hints(
            cut(hints.key),
            None,
            None if hints.score is None else _flat(cut(hints.score.unsqueeze(-1))),
            0,
            self.window**2,
        )
        x, size, pos = cut(t.x), cut(t.size), cut(t.pos)
        assert x is not None and size is not None and pos is not None
        inside = Tokens(
            x,
            size,
            pos,
            (self.window, self.window),
            cut(t.keep),
            cut(t.carry),
            t.padded or layout.is_padded,
        )
        out, inner_map = self.reducer(inside, inner_hints, want_map)
        x, size, pos = glue(out.x), glue(out.size), glue(out.pos)
        assert x is not None and size is not None and pos is not None
        tokens = Tokens(x, size, pos, None, glue(out.keep), glue(out.carry))
        return tokens, None if inner_map is None else _whole_map(inner_map, layout, batch)

    def macs(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """Windows times the reducer's own."""
        assert grid is not None
        places, side = self.window**2, (self.window, self.window)
        return self._layout(grid).num_windows * self.reducer.macs(places, places, side)

    def map_macs(self, n: int, m: int, grid: tuple[int, int] | None, channels: int) -> int:
        """Windows times the reducer's own."""
        assert grid is not None
        windows, places = self._layout(grid).num_windows, self.window**2
        side = (self.window, self.window)
        return windows * self.reducer.map_macs(places, m // windows, side, channels)


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[..., 0]


def _order(layout: WindowLayout, device: torch.device) -> Tensor:
    """(W * n,) token of every place, N for places outside the map."""
    n = layout.grid[0] * layout.grid[1]
    index = torch.arange(n, device=device, dtype=torch.float64).view(1, n, 1)
    return partition(index, layout, fill=float(n)).flatten().long()


def _whole_map(inner: TokenMap, layout: WindowLayout, batch: int) -> TokenMap:
    """The map of the whole grid from the maps of its windows."""
    windows = layout.num_windows
    if isinstance(inner, HardMap):
        m, total = inner.num_out, windows * inner.num_out
        slot = inner.slot.unflatten(0, (batch, windows))
        first = torch.arange(windows, device=slot.device).view(1, -1, 1) * m
        slot = torch.where(slot == m, total, slot + first).flatten(1)
        n = layout.grid[0] * layout.grid[1]
        whole = slot.new_full((batch, n + 1), total)
        index = _order(layout, slot.device).expand(batch, -1)
        return HardMap(whole.scatter(1, index, slot)[:, :n], total)
    assert isinstance(inner, SoftMap)
    share = inner.share
    if share.shape[0] == 1:
        share = share.expand(windows, -1, -1).unsqueeze(0)
    else:
        share = share.unflatten(0, (batch, windows))
    return WindowMap(share, _order(layout, share.device), layout.grid[0] * layout.grid[1])


def _built(cfg: Mapping[str, Any], dim: int, num_heads: int, window: int) -> Reducer:
    """The reducer of one window, whatever scope the surrounding model is built in."""
    own = dict(cfg)
    name = own.pop("type", None)
    cls = name if isinstance(name, type) else REDUCERS.get(str(name))
    if cls is None:
        raise ValueError(f"reducer: type={name!r}; legal: {sorted(REDUCERS.module_dict)}")
    try:
        reducer: Reducer = cls(dim=dim, num_heads=num_heads, grid=(window, window), **own)
    except TypeError as error:
        raise ValueError(f"reducer {cls.__name__}: {error}; settings: {own}") from error
    return reducer
