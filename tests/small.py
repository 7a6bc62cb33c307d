"""Small backbones for tests: every part of the real ones, few channels; tools as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tokensparse.backbones import SwinTransformer, VisionTransformer

VIT = dict(embed_dim=32, depth=5, num_heads=2)
SWIN = dict(embed_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))


def small_vit(**settings: Any) -> VisionTransformer:
    """8 x 8 patches of 8 pixels, five blocks."""
    torch.manual_seed(0)
    return VisionTransformer(**{**dict(arch=VIT, img_size=64, patch_size=8), **settings})


def small_swin(**settings: Any) -> SwinTransformer:
    """Four stages in windows of 4; 8 x 8 tokens in stage 2 at 128 pixels."""
    torch.manual_seed(0)
    return SwinTransformer(**{**dict(arch=SWIN, img_size=128, window_size=4), **settings})


def image(size: tuple[int, int], batch: int = 2, seed: int = 1) -> torch.Tensor:
    """(batch, 3, rows, columns) of noise."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def tool_of(name: str) -> ModuleType:
    """A command line of ``tools/`` as a module."""
    path = Path(__file__).parents[1] / f"tools/{name}.py"
    spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
