"""tokensparse: vision transformers with fewer tokens, for classification and dense prediction.

Importing it registers every backbone, reducer and recovery; it needs torch, timm and mmengine, and
neither mmcv nor mmdet nor mmseg.
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        "tokensparse needs mmengine: `pip install onedl-mmengine` (the maintained continuation), "
        "or keep an upstream mmengine >= 0.10.4"
    ) from error

from tokensparse import backbones, classification, engine, recoveries, reducers
from tokensparse.dense.pyramid import SimpleFeaturePyramid
from tokensparse.released import apply_plan, load_released
from tokensparse.token_model import TokenModel

__version__ = "0.1.0"

__all__ = [
    "SimpleFeaturePyramid",
    "TokenModel",
    "apply_plan",
    "backbones",
    "classification",
    "engine",
    "load_released",
    "recoveries",
    "reducers",
]
