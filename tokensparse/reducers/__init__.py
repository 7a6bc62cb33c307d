"""Token reducers: one method a file, found by name in ``REDUCERS``."""

from tokensparse.reducers.evit import EViT
from tokensparse.reducers.sparta import SparTa
from tokensparse.reducers.stgm import STGM
from tokensparse.reducers.tome import ToMe
from tokensparse.reducers.topk import TopK
from tokensparse.reducers.windowed import Windowed

__all__ = ["STGM", "EViT", "SparTa", "ToMe", "TopK", "Windowed"]
