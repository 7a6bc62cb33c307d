"""ToMe: merge the most similar tokens, a few in every block."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokensparse.interfaces import Reducer
from tokensparse.ops.matching import bipartite_matching
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, Hints, TokenMap, Tokens


@REDUCERS.register_module()
class ToMe(Reducer):
    """Merge the ``r`` most similar pairs, matched bipartitely (ToMe, arXiv:2210.09461, Sec. 3).

    Similarity is the cosine of the block's own keys, averaged over heads; a merged token is the
    size-weighted mean. The new order is [unmerged A, B]. Later attention adds log(size) where
    ``proportional`` (Sec. 3, Eq. 1).

    Args:
        r: tokens to remove; at most half of those present are removed.
        proportional: proportional attention (for off-the-shelf supervised models).
    """

    where = "inside"
    needs = frozenset({"key"})
    pairwise = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        r: int = 8,
        proportional: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, grid)
        if not isinstance(r, int) or r < 0:
            raise ValueError(
                f"r={r!r}; expected tokens to remove, an int >= 0 (lists and inflection go with "
                "plan=dict(every=...))"
            )
        self.r = r
        self.proportional = proportional

    def num_out(self, n: int, n_start: int) -> int:
        """N - min(r, N // 2)."""
        return n - min(self.r, n // 2)

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """Merge by ``hints.key`` (B, N, D)."""
        assert hints.key is not None
        n = t.x.shape[1]
        matching = bipartite_matching(hints.key, min(self.r, n // 2), hints.num_prefix, t.size)
        merge = HardMap(matching.slot, matching.num_out)
        size = merge.down(t.size.expand(t.x.shape[0], -1, -1))
        weight = t.size / size.gather(1, matching.slot.unsqueeze(-1)).clamp(min=1e-6)
        merged = Tokens(
            merge.down(t.x * weight.to(t.x.dtype)),
            size,
            merge.down(t.pos * weight),
            None,
            None if t.keep is None else merge.down(t.keep * weight),
            None if t.carry is None else merge.down(t.carry * weight),
        )
        return merged, merge if want_map else None

    def macs(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """Similarities between A and B: N/2 x N/2 x D."""
        return (n // 2) * (n - n // 2) * (self.dim // self.num_heads)

    @classmethod
    def schedule(cls, cfg: Mapping[str, Any], depth: int) -> Sequence[Mapping[str, Any] | None]:
        """``r`` constant, a list with one entry per block, or spread by ``inflection``.

        Args:
            cfg: ``r``, and ``inflection`` in -1..1: -1 removes most in early blocks, 0 the same in
                all, 1 most in late ones (released ToMe): block i removes int(first + i (last -
                first) / (L - 1)), first = int(r (1 - inflection)), last = 2 r - first.
            depth: L.

        Returns:
            Settings of every block.

        Raises:
            ValueError: a list of another length, an inflection outside -1..1.
        """
        own = {k: v for k, v in cfg.items() if k != "inflection"}
        r, inflection = cfg.get("r", 8), cfg.get("inflection", 0.0)
        if isinstance(r, int):
            if not -1.0 <= inflection <= 1.0:
                raise ValueError(f"inflection={inflection!r}; expected -1.0..1.0")
            first = int(r * (1.0 - inflection))
            last = 2 * r - first
            rs = [int(first + i * (last - first) / max(depth - 1, 1)) for i in range(depth)]
        else:
            if "inflection" in cfg:
                raise ValueError("inflection goes with one r, not with a list")
            rs = list(r)
            if len(rs) != depth:
                raise ValueError(f"r has {len(rs)} entries, but there are {depth} blocks")
        return [{**own, "r": block_r} for block_r in rs]
