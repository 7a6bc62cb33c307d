"""Random pruning, the baseline of every learned score: the example of docs/adding_a_method.md."""

import torch
from torch import Tensor

from tokensparse.interfaces import Reducer
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, Hints, TokenMap, Tokens


@REDUCERS.register_module()
class RandomPruning(Reducer):
    """Keep ``num_tokens`` random tokens (the control of DynamicViT, arXiv:2106.02034, Table 4).

    Training draws anew for every image; evaluation keeps one scattered subset, so that
    results repeat.

    Args:
        num_tokens: tokens to keep.
    """

    where = "before"

    def __init__(
        self, dim: int, num_heads: int, grid: tuple[int, int], num_tokens: int = 32
    ) -> None:
        super().__init__(dim, num_heads, grid)
        self.num_tokens = num_tokens

    def num_out(self, n: int, n_start: int) -> int:
        """At most ``num_tokens``."""
        return min(n, self.num_tokens)

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """Keep M of N tokens."""
        batch, n, _ = t.x.shape
        m = self.num_out(n, hints.n_start)
        index = self._scores(t).masked_fill(t.size[..., 0] == 0, -1.0).topk(m).indices

        def take(x: Tensor | None) -> Tensor | None:
            return (
                None if x is None else x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            )

        kept = Tokens(take(t.x), take(t.size), take(t.pos), keep=take(t.keep), carry=take(t.carry))
        if not want_map:
            return kept, None
        slot = torch.full((batch, n), m, device=index.device)
        place = torch.arange(m, device=index.device).expand(batch, -1)
        return kept, HardMap(slot.scatter(1, index, place), m)

    def _scores(self, t: Tokens) -> Tensor:
        """(B, N) in 0..1: random while training, a fixed low-discrepancy sequence otherwise."""
        batch, n, _ = t.x.shape
        if self.training:
            return torch.rand(batch, n, device=t.x.device)
        return (torch.arange(n, device=t.x.device) * 0.618034).frac().expand(batch, -1)
