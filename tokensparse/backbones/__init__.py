"""Backbones: one ViT, one Swin, and thin named presets; registered in ``MODELS``."""

from tokensparse.backbones.base import Backbone
from tokensparse.backbones.fit import check_fit, inner_model
from tokensparse.backbones.sparse_swin import SparseSwin
from tokensparse.backbones.stvit import STViTDeiT, STViTSwin
from tokensparse.backbones.swin import SwinTransformer
from tokensparse.backbones.vit import VisionTransformer

__all__ = [
    "Backbone",
    "STViTDeiT",
    "STViTSwin",
    "SparseSwin",
    "SwinTransformer",
    "VisionTransformer",
    "check_fit",
    "inner_model",
]
