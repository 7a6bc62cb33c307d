"""TokenModel around mmdet's Mask R-CNN and mmseg's UPerNet: padding, crops, views, training."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from dense_models import HEADS, build, dense_config
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from small import image
from torch import Tensor, nn
from wrapped import SIZES, WITH_LOSS, batch, build_mm, mm_samples, numbers, predict


@pytest.fixture(params=["mmdet", "mmseg"])
def mm(request: pytest.FixtureRequest) -> BaseModel:
    """A Mask R-CNN or an UPerNet of few channels, wrapped, built as mm's runner builds it."""
    pytest.importorskip(request.param)
    return build_mm(request.param)


def test_content_of_padding_changes_no_prediction(mm: BaseModel) -> None:
    clean, noisy = predict(mm, batch()), predict(mm, batch(noise=5.0))
    assert all(len(t) for t in clean)
    for a, b in zip(clean, noisy, strict=True):
        assert a.equal(b)
    with torch.no_grad():
        results = [mm.model(batch(noise=n), mm_samples(mm), mode="predict") for n in (0, 5)]
    without = [numbers(r) for r in results]
    changed = [a.shape != b.shape or not a.equal(b) for a, b in zip(*without, strict=True)]
    assert any(changed), "the padding never mattered: the test proves nothing"


def test_an_unpadded_batch_is_the_plain_model(mm: BaseModel) -> None:
    whole = [(128, 160)] * 2
    x = image((128, 160))
    with torch.no_grad():
        plain = numbers(mm.model(x, mm_samples(mm, whole), mode="predict"))
    for a, b in zip(predict(mm, x, whole), plain, strict=True):
        assert a.equal(b)


def test_images_of_different_sizes_through_test_step() -> None:
    """The preprocessor pads; every prediction lies inside its own image."""
    pytest.importorskip("mmdet")
    model = build_mm("mmdet")
    inputs = [(image(size, 1)[0] * 50 + 120).byte() for size in SIZES]
    results = model.test_step(dict(inputs=inputs, data_samples=mm_samples(model)))
    for result, (h, w) in zip(results, SIZES, strict=True):
        boxes = result.pred_instances.bboxes
        assert len(boxes) and result.pred_instances.masks.shape[-2:] == (h, w)
        assert (boxes[:, 2] <= w).all() and (boxes[:, 3] <= h).all()


def test_sliding_crops_have_their_own_valid_sizes() -> None:
    pytest.importorskip("mmseg")
    model = build_mm("mmseg", dict(mode="slide", crop_size=(64, 64), stride=(48, 48)))
    seen: list[tuple[Tensor, Tensor | None]] = []
    record = lambda m, args, kwargs: seen.append((args[0], kwargs.get("valid")))  # noqa: E731
    model.backbone.register_forward_pre_hook(record, with_kwargs=True)
    clean, noisy = predict(model, batch()), predict(model, batch(noise=5.0))
    for a, b in zip(clean, noisy, strict=True):
        assert a.equal(b)
    places = [(y, x) for y in (0, 48, 64) for x in (0, 48, 96)]
    for (y, x), (crop, valid) in zip(places, seen[:9], strict=True):
        expected = [[min(max(h - y, 0), 64), min(max(w - x, 0), 64)] for h, w in SIZES]
        got = [[64, 64]] * 2 if valid is None else valid.tolist()
        assert tuple(crop.shape[-2:]) == (64, 64) and got == expected


def test_multi_scale_flip_augmentation_of_mmseg() -> None:
    """SegTTAModel, scales 0.5-1.75 with flip: the mean of what the views give one by one."""
    pytest.importorskip("mmseg")
    from mmseg.models import SegTTAModel
    from mmseg.structures import SegDataSample

    model = build_mm("mmseg")
    model.data_preprocessor.test_cfg = dict(size_divisor=32)
    tta = SegTTAModel(module=model)
    picture = (image((60, 72), 1)[0] * 40 + 120).clamp(0, 255)
    inputs, views = [], []
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        size = (int(60 * ratio), int(72 * ratio))
        scaled = nn.functional.interpolate(picture[None], size)[0]
        for flip in (False, True):
            inputs.append([scaled.flip(2).byte() if flip else scaled.byte()])
            meta = dict(ori_shape=(60, 72), img_shape=size, flip=flip, img_path="a.png")
            views.append([SegDataSample(metainfo=dict(meta, flip_direction="horizontal"))])
    with torch.no_grad():
        (merged,) = tta.test_step(dict(inputs=inputs, data_samples=copy.deepcopy(views)))
        each = [
            model.test_step(dict(inputs=i, data_samples=v))[0].seg_logits.data
            for i, v in zip(inputs, views, strict=True)
        ]
    mean = torch.stack([logits.softmax(0) for logits in each]).mean(0)
    assert merged.pred_sem_seg.data[0].equal(mean.argmax(0)) and mean.shape[-2:] == (60, 72)
    assert not each[0].equal(each[1])


def test_training_of_mmseg_tells_the_valid_sizes() -> None:
    """Its preprocessor pads images and maps of classes, and keeps the size of each image."""
    pytest.importorskip("mmseg")
    model = build_mm("mmseg").train()
    seen: list[Any] = []
    record = lambda m, args, kwargs: seen.append(kwargs.get("valid"))  # noqa: E731
    model.backbone.register_forward_pre_hook(record, with_kwargs=True)
    targets = mm_samples(model)
    for target, size in zip(targets, SIZES, strict=True):
        annotate("mmseg", target, size)
    inputs = [image(size, 1)[0] for size in SIZES]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=targets), True)
    model(**data, mode="loss")
    assert seen[0].tolist() == [list(size) for size in SIZES]


def annotate(library: str, target: Any, size: tuple[int, int]) -> None:
    """One box with its mask, or a class for every pixel."""
    if library == "mmdet":
        from mmdet.structures.mask import BitmapMasks

        target.gt_instances = InstanceData(
            bboxes=torch.tensor([[10.0, 10.0, 60.0, 70.0]]),
            labels=torch.tensor([1]),
            masks=BitmapMasks(np.ones((1, *size), np.uint8), *size),
        )
    else:
        target.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, *size)))


def takes_a_step(library: str, model: BaseModel) -> None:
    """train_step pads, adds the reducer's loss to the others and follows its gradient."""
    model.train()
    targets = mm_samples(model)
    for target, size in zip(targets, SIZES, strict=True):
        annotate(library, target, size)
    inputs = [image(size, 1)[0] for size in SIZES]
    weight = model.backbone.plan.steps[0].reduce.target
    before = weight.item()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    log = model.train_step(dict(inputs=inputs, data_samples=targets), optimizer)
    assert log["loss_step0_size"] > 0
    total = sum(float(value) for name, value in log.items() if "loss" in name and name != "loss")
    assert float(log["loss"]) == pytest.approx(total, rel=1e-5)
    assert weight.item() != before


@pytest.mark.parametrize("library", ["mmdet", "mmseg"])
def test_a_training_step_with_auxiliary_losses(library: str) -> None:
    takes_a_step(library, build_mm(library, plan=WITH_LOSS))


@pytest.mark.parametrize("head", ["deformable-detr", "dino", "fcos", "mask2former"])
def test_queries_and_dense_points(head: str) -> None:
    """Heads of other kinds: no prediction sees the padding, and they train with the losses."""
    inner = dense_config(head, "SwinTransformer", plan=WITH_LOSS, window_padding="masked")
    if head == "fcos":
        inner.test_cfg.score_thr = 0.0
    elif head == "mask2former":
        inner.data_preprocessor.update(size=(128, 160), test_cfg=dict(size=(128, 160)))
    model = build(head, ConfigDict(type="tokensparse.TokenModel", model=inner)).eval()
    library = HEADS[head][0]

    def results(of: BaseModel, noise: float) -> list[Tensor]:
        given = mm_samples(model)
        return numbers(of(batch(noise=noise), given, mode="predict"))

    with torch.no_grad(), DefaultScope.overwrite_default_scope(library):
        wrapped = [results(model, noise) for noise in (0, 5)]
        plain = [results(model.model, noise) for noise in (0, 5)]
    assert len(wrapped[0]) >= 2 and all(len(found) for found in wrapped[0])
    assert all(a.equal(b) for a, b in zip(*wrapped, strict=True))
    changed = [a.shape != b.shape or not a.equal(b) for a, b in zip(*plain, strict=True)]
    assert any(changed), "the padding never mattered: the test proves nothing"
    with DefaultScope.overwrite_default_scope(library):
        takes_a_step(library, model)
