"""The two contracts: a Reducer makes fewer tokens, a Recovery makes the map whole again.

A new method is one file with one subclass of :class:`Reducer`, registered in ``REDUCERS``.
``docs/adding_a_method.md`` walks through one; ``pytest --reducer module:Class`` checks it.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from tokensparse.tokens import Hints, StepRecord, TokenMap, Tokens


class Reducer(nn.Module):
    """N image tokens in, ``num_out(N)`` out.

    Args:
        dim: channels C of the tokens.
        num_heads: attention heads of the surrounding blocks.
        grid: (H, W) of the tokens at the backbone's ``img_size``; any other grid must work too.

    Attributes:
        where: ``before`` a block; in its ``attention`` (queries reduced, keys dense); ``inside``,
            between attention and feed-forward.
        needs: fields of :class:`Hints` that forward reads.
        proportional: add log(size) to later attention logits, until the step closes.
        pairwise: cost grows with N x N; the plan refuses it unwindowed over 4,096 tokens.
        needs_grid: the tokens must tile a grid.
        out_dim: channels of the new tokens.
    """

    where: Literal["before", "attention", "inside"] = "before"
    needs: frozenset[str] = frozenset()
    proportional: bool = False
    pairwise: bool = False
    needs_grid: bool = False

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.dim = dim
        self.out_dim = dim
        self.num_heads = num_heads
        self.grid = grid

    @abstractmethod
    def num_out(self, n: int, n_start: int) -> int:
        """Tokens out for ``n`` tokens in; plain Python, so that counts are static.

        Args:
            n: image tokens present.
            n_start: image tokens that entered the stage.
        """

    @abstractmethod
    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> tuple[Tokens, TokenMap | None]:
        """Reduce.

        Args:
            t: N tokens, ``t.x`` (B, N, C); prefix tokens are already set aside.
            hints: what ``needs`` asked for.
            want_map: whether a recovery or the trace will read the map.

        Returns:
            M = ``num_out(N)`` tokens, and the N -> M map (None is allowed where ``want_map`` is
            False).
        """

    def num_out_at(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """:meth:`num_out` for tokens that tile ``grid``; overridden where the grid matters."""
        return self.num_out(n, n_start)

    def check(self, n: int, n_start: int) -> None:
        """Raise ValueError, with the remedy, where ``n`` tokens do not fit (called when built)."""

    def out_grid(self, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        """(H, W) that the new tokens tile, or None where they tile none."""
        return None

    def pads(self, grid: tuple[int, int] | None) -> bool:
        """Whether tokens of size 0 (padding) can come out at this grid."""
        return False

    def macs(self, n: int, n_start: int, grid: tuple[int, int] | None) -> int:
        """Multiply-accumulates of an image (matrix products and convolutions), as a closed formula.

        The default takes every linear layer to run once per token. ``analysis.count`` holds it
        against the executed operations, and the contract tests ask for equality.
        """
        layers = [m for m in self.modules() if isinstance(m, nn.Linear)]
        return sum(n * m.in_features * m.out_features for m in layers)

    def map_macs(self, n: int, m: int, grid: tuple[int, int] | None, channels: int) -> int:
        """Multiply-accumulates of one way up: 0 for a hard map (an index), N M C for a soft one."""
        return 0

    def attention_map(self, t: Tokens) -> Tensor | None:
        """(B, M, N) how much every token that is made looks at those before, for pictures.

        None, the default, where no attention of that shape makes the tokens.
        """
        return None

    def loss(self, record: StepRecord) -> Mapping[str, Tensor]:
        """Auxiliary losses of one step, by name; added to the model's own while training."""
        return {}

    @classmethod
    def schedule(cls, cfg: Mapping[str, Any], depth: int) -> Sequence[Mapping[str, Any] | None]:
        """Settings of ``depth`` blocks for a plan's ``every``; None leaves a block alone."""
        return [cfg] * depth


class Recovery(nn.Module):
    """M tokens in, a full map out.

    Args:
        dim: channels C of the tokens and of the map.
        num_heads: attention heads of the surrounding blocks.
        grid: (H, W) wanted at the backbone's ``img_size``; any other grid must work too.
        num_tokens: M at the backbone's ``img_size``; any other count must work too.

    Attributes:
        needs_map: whether forward reads the map ``m``.
    """

    needs_map: bool = False

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], num_tokens: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.grid = grid
        self.num_tokens = num_tokens

    @abstractmethod
    def forward(
        self, t: Tokens, skip: Tokens, m: TokenMap | None, grid: tuple[int, int] | None
    ) -> Tokens:
        """Recover.

        Args:
            t: M tokens.
            skip: the N tokens before the reduction.
            m: the N -> M map (None unless ``needs_map``).
            grid: (H, W) wanted; may differ from ``skip.grid``. None where skip tiles no grid: N
                tokens are wanted.

        Returns:
            H * W tokens in row-major order (or N, in skip's order).
        """

    def macs(
        self, m: int, n: int, grid_in: tuple[int, int] | None, grid: tuple[int, int] | None
    ) -> int:
        """Multiply-accumulates of one image, as a closed formula: M tokens back to N."""
        return 0
