"""Backbones: one ViT, one Swin, and thin named presets; registered in ``MODELS``."""

from tokensparse.backbones.sparse_swin import SparseSwin
from tokensparse.backbones.stvit import STViTDeiT, STViTSwin
from tokensparse.backbones.swin import SwinTransformer
from tokensparse.backbones.vit import VisionTransformer

__all__ = ["STViTDeiT", "STViTSwin", "SparseSwin", "SwinTransformer", "VisionTransformer"]
