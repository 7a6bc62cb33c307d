"""A timm model under a plan: without one its logits stay, and what ours cannot be is refused."""

import re
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from tests.small import image
from tests.test_parity_dense import random_weights
from tests.test_released import SWIN, TOKENS, VIT, same, swin, vit
from tokensparse import apply_plan


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(global_pool="avg", fc_norm=False),
        dict(global_pool="avg", fc_norm=False, class_token=False),
        dict(reg_tokens=3),
        dict(no_embed_class=True, reg_tokens=3),
        dict(init_values=0.2),
        dict(qkv_bias=False),
        dict(proj_bias=False),
        dict(pos_embed="none"),
        dict(mlp_ratio=2.7),
        dict(img_size=(64, 96)),
        dict(norm_layer=lambda dim, **kw: nn.LayerNorm(dim, eps=1e-3)),
    ],
    ids=str,
)
def test_empty_plan_equals_timm_vit(settings: dict[str, Any]) -> None:
    theirs = vit(**settings)
    size = theirs.patch_embed.img_size
    assert same(apply_plan(theirs, None), theirs, size)
    assert same(apply_plan(theirs, []), theirs, size)


def test_empty_plan_equals_timm_distilled() -> None:
    theirs = random_weights(VisionTransformerDistilled(**VIT))
    assert same(apply_plan(theirs), theirs, (64, 64))


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(img_size=(128, 256)),
        dict(qkv_bias=False),
        dict(always_partition=True),
        dict(img_size=(144, 204)),
        dict(img_size=(64, 204), always_partition=True),
        dict(depths=(2, 2), num_heads=(1, 2), img_size=(64, 32)),
    ],
    ids=str,
)
def test_empty_plan_equals_timm_swin(settings: dict[str, Any]) -> None:
    theirs = swin(**settings)
    assert same(apply_plan(theirs), theirs, theirs.patch_embed.img_size)


@pytest.mark.parametrize(
    ("settings", "attribute"),
    [
        (dict(qk_norm=True), "q_norm"),
        (dict(scale_attn_norm=True), "attn.norm"),
        (dict(pre_norm=True), "norm_pre"),
        (dict(global_pool="avg"), "fc_norm"),
        (dict(global_pool="map"), "attn_pool"),
        (dict(global_pool="max", fc_norm=False), "global_pool"),
        (dict(global_pool="avg", fc_norm=False, pool_include_prefix=True), "pool_include_prefix"),
        (dict(act_layer="relu"), "mlp.act"),
        (dict(norm_layer="rmsnorm"), "norm"),
        (dict(final_norm=False), "norm"),
        (dict(num_classes=0), "head"),
        (dict(attn_layer="diff"), "attn"),
        (dict(img_size=70), "img_size"),
    ],
    ids=str,
)
def test_vit_that_ours_cannot_equal(settings: dict[str, Any], attribute: str) -> None:
    with pytest.raises(ValueError, match=f"apply_plan: .*{re.escape(attribute)} = .*supported"):
        apply_plan(TimmViT(**{**VIT, **settings}))


@pytest.mark.parametrize(
    ("settings", "attribute"),
    [
        (dict(img_size=64), "window_size"),
        (dict(window_size=(4, 4, 2, 2)), "window_size"),
        (dict(head_dim=8), "head_dim"),
        (dict(global_pool="max"), "global_pool"),
        (dict(num_classes=0), "head.fc"),
    ],
    ids=str,
)
def test_swin_that_ours_cannot_equal(settings: dict[str, Any], attribute: str) -> None:
    with pytest.raises(ValueError, match=f"apply_plan: .*{re.escape(attribute)} = .*supported"):
        apply_plan(TimmSwin(**{**SWIN, "num_classes": 5, **settings}))


def test_size_is_overridden_on_any_grid() -> None:
    theirs = vit(img_size=(64, 96), dynamic_img_size=True)
    model = apply_plan(theirs, img_size=(96, 96))
    assert model.backbone.grid == (12, 12)
    assert same(model, theirs, (96, 96))


def test_dynamic_swin() -> None:
    """timm keeps the shifts of the size it was built for; ours would follow the image."""
    with pytest.raises(ValueError, match="dynamic_img_size = True.*always_partition"):
        apply_plan(swin(strict_img_size=False))
    theirs = swin(strict_img_size=False, always_partition=True)
    for size in ((128, 128), (256, 192), (144, 204)):
        assert same(apply_plan(theirs), theirs, size)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear is neither"):
        apply_plan(nn.Linear(1, 1))


def test_plan_runs_on_timm_weights() -> None:
    theirs = vit()
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    model = apply_plan(theirs, TOKENS)
    out, trace = model.backbone.forward_tokens(image((64, 64)))
    assert [record.size.shape[1] for record in trace.steps] == [33]
    assert out[0].shape == (2, 64) and not model.training
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())


def test_dtype_follows_the_model() -> None:
    assert next(apply_plan(vit().double(), TOKENS).parameters()).dtype is torch.float64
