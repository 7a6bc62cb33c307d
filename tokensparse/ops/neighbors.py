"""Nearest neighbours between point sets."""

from torch import Tensor


def nearest(query: Tensor, points: Tensor, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The k nearest points of every query, ties broken by index.

    Args:
        query: (B, N, E).
        points: (B, M, E).
        k: neighbours, at most M.
        hidden: (B, M) booleans, points that are not to be found while others are left.

    Returns:
        Squared distances (B, N, k) and indices (B, N, k), nearest first.
    """
    gap = query.unsqueeze(2) - points.unsqueeze(1)
    distance = gap.square().sum(-1)
    distance = distance.masked_fill(hidden.unsqueeze(1), 1.0e12)
    values, index = distance.sort(dim=-1, stable=True)
    return values[..., :k], index[..., :k]
