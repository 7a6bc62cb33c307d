"""Ways back from few tokens to a full map: one a file, found by name in ``RECOVERIES``."""

from tokensparse.recoveries.attention import AttentionRestore
from tokensparse.recoveries.knn import KNNRestore
from tokensparse.recoveries.linear import LinearRestore
from tokensparse.recoveries.scatter import Scatter

__all__ = ["AttentionRestore", "KNNRestore", "LinearRestore", "Scatter"]
