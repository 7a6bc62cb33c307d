"""With an empty plan ours equal the models that timm, torchvision, mmdet and mmseg build: 1e-5."""

import re
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from torchvision.models.swin_transformer import swin_t
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from tests.small import image
from tokensparse import load_released

TOLERANCE = 1e-5
SIZES = [(224, 224), (200, 264)]
NARROW_SWIN = dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
NARROW_VIT = dict(patch_size=16, embed_dim=48, depth=3, num_heads=3, num_classes=10)


def random_weights(model: nn.Module) -> nn.Module:
    """Every parameter drawn anew: zeros and ones would hide swapped norms and tables."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.2 if parameter.ndim < 2 else 0.6 / parameter[0].numel() ** 0.5
        is_norm = "norm" in name or "ln" in name
        offset = 1.0 if is_norm and name.endswith("weight") else 0.0
        parameter.data = offset + scale * noise
    model.eval()
    return model


@torch.no_grad()
def furthest(ours: nn.Module, theirs: nn.Module, size: tuple[int, int]) -> float:
    """Largest absolute difference of the outputs."""
    img = image(size)
    a, b = ours(img), theirs(img)
    pairs = [(a, b)] if isinstance(a, Tensor) else list(zip(a, b, strict=True))
    return max((x - y).abs().max().item() for x, y in pairs)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("size", SIZES)
def test_torchvision_swin(size: tuple[int, int], attention: str) -> None:
    theirs = random_weights(
        TorchvisionSwin([4, 4], 16, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7], num_classes=10)
    )
    ours = load_released("torchvision-swin", theirs.state_dict(), attention=attention)
    assert furthest(ours, theirs, size) <= TOLERANCE


@pytest.mark.parametrize("size", [*SIZES, (448, 224)])
def test_timm_swin(size: tuple[int, int]) -> None:
    theirs = random_weights(TimmSwin(img_size=size, num_classes=10, **NARROW_SWIN))
    ours = load_released("timm-swin", theirs.state_dict(), img_size=size)
    assert furthest(ours, theirs, size) <= TOLERANCE


@pytest.mark.parametrize("package", ["mmdet", "mmseg"])
@pytest.mark.parametrize("size", [*SIZES, (131, 190)])
def test_openmmlab_swin(package: str, size: tuple[int, int]) -> None:
    backbones = pytest.importorskip(f"{package}.models.backbones")
    kwargs = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    theirs = random_weights(backbones.SwinTransformer(**kwargs))
    ours = load_released(f"{package}-swin", theirs.state_dict())
    assert furthest(ours, theirs, size) <= TOLERANCE


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names to those of Swin's authors: merging lies at the end of a layer."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", name)
        renamed[name.replace("head.fc.", "head.")] = value
    return renamed


@pytest.mark.parametrize("size", [(224, 224), (224, 448), (448, 224)])
def test_official_swin(size: tuple[int, int]) -> None:
    """The authors' blocks are timm's, but no axis is shifted where one side fits a window."""
    theirs = random_weights(TimmSwin(img_size=size, num_classes=10, **NARROW_SWIN))
    for block in (block for stage in theirs.layers for block in stage.blocks):
        if min(block.input_resolution) <= 7:
            block.shift_size, block.attn_mask = (0, 0), None
    ours = load_released("official-swin", official_names(theirs.state_dict()), img_size=size)
    assert furthest(ours, theirs, size) <= TOLERANCE


class MmpretrainSwin(nn.Module):
    """mmdet's Swin under mmpretrain's rule: no shift where the shorter side is one window."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.backbone = trunk
        self.head = nn.ModuleDict(dict(fc=nn.Linear(128, 10)))
        for block in (block for stage in trunk.stages for block in stage.blocks):
            block.attn.register_forward_pre_hook(self._rule)

    @staticmethod
    def _rule(attn: Any, args: tuple[Tensor, tuple[int, int]]) -> None:
        attn.wanted = getattr(attn, "wanted", attn.shift_size)
        attn.shift_size = 0 if min(args[1]) == attn.window_size else attn.wanted

    def forward(self, img: Tensor) -> Tensor:
        return self.head["fc"](self.backbone(img)[-1].mean((2, 3)))


@pytest.mark.parametrize("size", [*SIZES, (224, 448), (300, 208)])
def test_mmpretrain_swin(size: tuple[int, int]) -> None:
    backbones = pytest.importorskip("mmdet.models.backbones")
    kwargs = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), out_indices=(3,))
    theirs = random_weights(MmpretrainSwin(backbones.SwinTransformer(**kwargs)))
    ours = load_released("mmpretrain-swin", theirs.state_dict())
    assert furthest(ours, theirs, size) <= TOLERANCE


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_timm_vit(size: tuple[int, int], class_token: bool) -> None:
    extra: dict[str, Any] = {} if class_token else dict(global_pool="avg", fc_norm=False)
    theirs = random_weights(
        TimmViT(
            class_token=class_token,
            dynamic_img_size=True,
            dynamic_img_pad=True,
            **NARROW_VIT,
            **extra,
        )
    )
    ours = load_released("timm-vit", theirs.state_dict(), num_heads=3)
    assert furthest(ours, theirs, size) <= TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_distilled_deit(attention: str) -> None:
    theirs = random_weights(VisionTransformerDistilled(**NARROW_VIT))
    ours = load_released("timm-vit", theirs.state_dict(), num_heads=3, attention=attention)
    assert furthest(ours, theirs, (224, 224)) <= TOLERANCE


@pytest.mark.parametrize(
    "settings", [dict(no_embed_class=True), dict(init_values=0.3), dict(reg_tokens=4)]
)
def test_timm_vit_variants(settings: dict[str, Any]) -> None:
    theirs = random_weights(TimmViT(**NARROW_VIT, **settings))
    ours = load_released("timm-vit", theirs.state_dict(), num_heads=3)
    assert furthest(ours, theirs, (224, 224)) <= TOLERANCE


def test_torchvision_vit() -> None:
    theirs = random_weights(TorchvisionViT(224, 16, 3, 3, 48, 96, num_classes=10))
    ours = load_released("torchvision-vit", theirs.state_dict(), num_heads=3)
    assert furthest(ours, theirs, (224, 224)) <= TOLERANCE


@pytest.mark.parametrize(
    ("built", "size"),
    [
        ((224, 224), (224, 224)),
        ((208, 272), (208, 272)),
        ((224, 224), (200, 264)),
        ((224, 224), (304, 160)),
    ],
)
@pytest.mark.parametrize("final_norm", [True, False])
def test_mmseg_vit(built: tuple[int, int], size: tuple[int, int], final_norm: bool) -> None:
    backbones = pytest.importorskip("mmseg.models.backbones")
    theirs = random_weights(
        backbones.VisionTransformer(
            img_size=built,
            embed_dims=48,
            num_layers=4,
            num_heads=3,
            out_indices=(1, 3),
            final_norm=final_norm,
            norm_cfg=dict(type="LN", eps=1e-6),
        )
    )
    ours = load_released(
        "mmseg-vit", theirs.state_dict(), num_heads=3, out_indices=(1, 3), img_size=built
    )
    assert furthest(ours, theirs, size) <= TOLERANCE


def test_swin_t() -> None:
    theirs = random_weights(swin_t())
    ours = load_released("torchvision-swin", theirs.state_dict())
    assert furthest(ours, theirs, (200, 264)) <= TOLERANCE


def test_deit_t() -> None:
    theirs = random_weights(timm.create_model("deit_tiny_patch16_224"))
    ours = load_released("timm-vit", theirs.state_dict())
    assert furthest(ours, theirs, (224, 224)) <= TOLERANCE
