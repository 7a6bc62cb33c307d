"""Our backbones inside the detectors and segmentors that mmdet and mmseg ship."""

import re
from typing import Any

import pytest
import torch
from dense_models import (
    BACKBONES,
    HEADS,
    SIZE,
    build,
    dense_config,
    predict,
    train_step,
    without_gradient,
)
from mmengine.config import Config
from mmengine.model import BaseModel

from tokensparse import SimpleFeaturePyramid, TokenModel
from tokensparse.backbones import check_fit
from tokensparse.config_check import check_config

#: An FPN that starts at the second level reads no map of the first stage.
SKIPS_FIRST = ("retinanet", "fcos")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_trains_and_predicts(head: str, backbone: str) -> None:
    """Every parameter of the backbone gets a gradient from every head."""
    model = build(head, dense_config(head, backbone))
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    train_step(head, model)
    unread = {"norm0.weight", "norm0.bias"} if head in SKIPS_FIRST else set()
    assert set(without_gradient(model.backbone)) <= unread
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    moved = [n for n, p in model.backbone.named_parameters() if not p.equal(before[n])]
    assert len(moved) > 0.5 * len(before)
    result = predict(head, model)
    if HEADS[head][0] == "mmseg":
        assert result.pred_sem_seg.data.shape == (1, *SIZE)
        assert torch.isfinite(result.seg_logits.data).all()
    else:
        assert torch.isfinite(result.pred_instances.bboxes).all()
        assert torch.isfinite(result.pred_instances.scores).all()


WRONG = {
    "neck of another backbone": (
        "mask-rcnn",
        "SwinTransformer",
        lambda m: m.neck.update(in_channels=[256, 512, 1024, 2048]),
        "model.neck.in_channels=[256, 512, 1024, 2048], but SwinTransformer returns maps of",
    ),
    "too few maps": (
        "mask-rcnn",
        "SwinTransformer",
        lambda m: m.backbone.update(out_indices=(1, 2, 3)),
        "set in_channels=[32, 64, 128]",
    ),
    "head of mmseg": (
        "upernet",
        "SparseSwin",
        lambda m: m.decode_head.update(in_channels=[16, 32, 64, 128]),
        "SparseSwin returns maps of [16, 32, 64, 96] channels; set in_channels=[16, 32, 64, 96]",
    ),
    "auxiliary head": (
        "upernet",
        "STViTSwin",
        lambda m: m.auxiliary_head.update(in_channels=128),
        "maps of [16, 32, 64, 128] channels; set in_channels=64",
    ),
    "index of a map that is not there": (
        "upernet",
        "SwinTransformer",
        lambda m: m.auxiliary_head.update(in_index=4),
        "model.auxiliary_head.in_index=4, but SwinTransformer returns 4 maps (0..3)",
    ),
    "pyramid": (
        "dino",
        "VisionTransformer",
        lambda m: m.neck.update(in_channels=384),
        "model.neck.in_channels=384, but VisionTransformer returns maps of [32] channels; set",
    ),
    "no maps": (
        "retinanet",
        "SwinTransformer",
        lambda m: m.backbone.update(out_indices=None),
        "returns no maps, but model.neck needs them; set out_indices=(0, 1, 2, 3)",
    ),
    "no maps of a plain ViT": (
        "mask-rcnn",
        "VisionTransformer",
        lambda m: m.backbone.update(out_indices=None),
        "set out_indices=(4,)",
    ),
    "a classifier alone": (
        "cascade",
        "SwinTransformer",
        lambda m: m.__setitem__("backbone", dict(type="tokensparse.STViTDeiT", img_size=64)),
        "give VisionTransformer a plan with STGM and a recovery",
    ),
    "out_indices": (
        "fpn",
        "SwinTransformer",
        lambda m: m.backbone.update(out_indices=(1, 2, 3, 4)),
        "out_indices=(1, 2, 3, 4); expected rising, different stages of 0..3",
    ),
    "paper": (
        "mask2former",
        "STViTSwin",
        lambda m: m.backbone.update(spec="paper"),
        "leave spec out, or spec='released-det'",
    ),
    "pretrained of mmseg": (
        "upernet",
        "SwinTransformer",
        lambda m: m.update(pretrained="swin.pth"),
        "set model.pretrained=None and backbone.init_cfg",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_built(case: str) -> None:
    """Also by TokenModel; part, value and remedy are named."""
    head, backbone, change, message = WRONG[case]
    model = dense_config(head, backbone)
    check_fit(model)
    change(model)
    for wrapped in (model, dict(type="tokensparse.TokenModel", model=model)):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_fit(wrapped)
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenModel(model, exact_padding=False)


class Least(BaseModel):
    """A detector's outline, for the strict check: it needs no registry of others."""

    def __init__(self, backbone: Any, neck: Any) -> None:
        super().__init__()


def test_the_strict_check_of_a_run_asks_it_too() -> None:
    model = dense_config("dino", "VisionTransformer")
    parts = dict(backbone=model.backbone.to_dict(), neck=model.neck.to_dict())
    cfg = Config(dict(model=dict(type=Least, **parts)))
    check_config(cfg)
    cfg.model.neck.in_channels = 384
    with pytest.raises(ValueError, match=r"model.neck.in_channels=384, .* set in_channels=32"):
        check_config(cfg)


def test_backbones_of_others_are_left_alone() -> None:
    check_fit(
        dict(type="FasterRCNN", backbone=dict(type="ResNet", depth=50), neck=dict(type="FPN"))
    )
    check_fit(dict(type="Any", backbone=dict(type="SwinTransformer"), neck=dict(in_channels=[1])))


def test_simple_feature_pyramid() -> None:
    """Levels at 4, 2, 1, 1/2 of the map and one more by pooling; every level has a gradient."""
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(16, out_channels=8)
    x = torch.randn(2, 16, 7, 9, requires_grad=True)
    outs = pyramid((torch.zeros(1), x))
    sides = [(28, 36), (14, 18), (7, 9), (4, 5), (2, 3)]
    assert [tuple(o.shape) for o in outs] == [(2, 8, *side) for side in sides]
    for out in outs:
        mean, var = out.mean(1), out.var(1, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        assert (var[var > 1e-4] - 1).abs().max() < 0.1
    sum((o * torch.randn_like(o)).sum() for o in outs).backward()
    assert without_gradient(pyramid) == [] and x.grad.any()
    assert outs[4].equal(outs[3][:, :, ::2, ::2])
    deconvolutions = [m for m in pyramid.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in deconvolutions] == [(16, 8), (8, 4), (16, 8)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(scales=(4.0, 3.0)), "scales=(4.0, 3.0); expected different ones of"),
        (dict(scales=(1.0, 2.0)), "from large to small"),
        (dict(scales=()), "scales=()"),
        (dict(num_outs=3), "num_outs=3, but scales=(4.0, 2.0, 1.0, 0.5) make 4 levels"),
        (dict(in_channels=[16]), "in_channels=[16]; expected one number"),
    ],
)
def test_pyramid_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SimpleFeaturePyramid(**{"in_channels": 16, **settings})


def test_pyramid_refuses_another_map() -> None:
    with pytest.raises(ValueError, match=re.escape("neck.in_channels=16, but the backbone's")):
        SimpleFeaturePyramid(16)((torch.zeros(1, 12, 4, 4),))
