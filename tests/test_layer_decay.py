"""Learning rates by depth: factors by hand, schedules keep them, wrong settings are refused."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from small import SWIN, VIT

from tokensparse.registry import MODELS

PLAN = [dict(stage=0, span=(2, None), reduce=dict(type="EViT", keep=0.5))]
BACKBONES = {
    "ViT": (dict(type="tokensparse.VisionTransformer", arch=VIT, img_size=64, patch_size=8), 5),
    "Swin": (dict(type="tokensparse.SwinTransformer", arch=SWIN, img_size=128, window_size=4), 10),
    "SparseSwin": (
        dict(
            type="tokensparse.SparseSwin",
            arch=dict(num_tokens=4, token_dim=32, num_heads=2),
            trunk=dict(embed_dim=16, depths=(2, 2, 4), num_heads=(1, 2, 4)),
            img_size=128,
            window_size=4,
        ),
        10,
    ),
}
EXPECTED = {
    "ViT": {"cls_token": 0, "pos_embed": 0, "stem.proj.weight": 0, "stages.0.blocks.4": 5},
    "Swin": {
        "stem.norm.weight": 0,
        "stages.0.blocks.1.": 2,
        "stages.1.transition.reduction": 2,
        "stages.1.blocks.0.": 3,
        "stages.3.blocks.1.": 10,
    },
    "SparseSwin": {"stages.2.blocks.3.": 8, "plan.steps.0.reduce.conv": 9},
}


def built(name: str, **paramwise):
    head = dict(type="tokensparse.LinearHead", num_classes=3)
    cfg = dict(type="tokensparse.ImageClassifier", backbone=BACKBONES[name][0], head=head)
    model = MODELS.build(ConfigDict(cfg))
    settings = dict(
        type="OptimWrapper",
        constructor="tokensparse.LayerDecay",
        optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
        paramwise_cfg=paramwise,
    )
    wrapper = build_optim_wrapper(model, ConfigDict(settings))
    by_id = {id(p): g for g in wrapper.optimizer.param_groups for p in g["params"]}
    return {n: by_id[id(p)] for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", BACKBONES)
def test_factors(name: str) -> None:
    groups, total = built(name, layer_decay=0.5, norm_decay_mult=0.0), BACKBONES[name][1]
    for start, layer in {**EXPECTED[name], "norm.": total + 1}.items():
        found = {g["lr"] for n, g in groups.items() if n.startswith(f"backbone.{start}")}
        assert list(found) == [pytest.approx(1e-3 * 0.5 ** (total + 1 - layer))], start
    assert {g["lr"] for n, g in groups.items() if n.startswith("head.")} == {1e-3}
    assert {g["weight_decay"] for n, g in groups.items() if ".norm1." in n} == {0.0}
    assert {g["weight_decay"] for n, g in groups.items() if n.endswith("qkv.weight")} == {0.05}


def test_other_factors_multiply_and_one_is_no_decay() -> None:
    keys = dict(pos_embed=dict(lr_mult=10.0))
    groups = built("ViT", layer_decay=0.5, custom_keys=keys)
    assert groups["backbone.pos_embed"]["lr"] == pytest.approx(1e-2 * 0.5**6)
    assert {g["lr"] for g in built("Swin", layer_decay=1.0).values()} == {1e-3}


@pytest.mark.parametrize("decay", [None, 0, 1.5, "0.65"])
def test_refused(decay) -> None:
    with pytest.raises(ValueError, match="paramwise_cfg.layer_decay="):
        built("ViT", layer_decay=decay)


def test_a_model_without_our_backbone() -> None:
    settings = dict(constructor="tokensparse.LayerDecay", paramwise_cfg=dict(layer_decay=0.5))
    cfg = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=1.0), **settings)
    with pytest.raises(ValueError, match="needs a backbone of tokensparse.*Linear has none"):
        build_optim_wrapper(torch.nn.Linear(2, 2), ConfigDict(cfg))
