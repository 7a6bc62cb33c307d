"""Models that mmdet and mmseg ship, narrowed, with a backbone of ours: for tests."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from small import SWIN, VIT, image
from torch import Tensor, nn

from tokensparse.registry import MODELS

#: Pixels of every image here.
SIZE = (96, 128)

#: Heads by the shipped config that they come from.
HEADS = {
    "cascade": ("mmdet", "_base_/models/cascade-mask-rcnn_r50_fpn.py"),
    "mask-rcnn": ("mmdet", "_base_/models/mask-rcnn_r50_fpn.py"),
    "retinanet": ("mmdet", "_base_/models/retinanet_r50_fpn.py"),
    "fcos": ("mmdet", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"),
    "deformable-detr": ("mmdet", "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"),
    "dino": ("mmdet", "dino/dino-4scale_r50_8xb2-12e_coco.py"),
    "upernet": ("mmseg", "_base_/models/upernet_swin.py"),
    "fpn": ("mmseg", "_base_/models/fpn_r50.py"),
    "segformer": ("mmseg", "_base_/models/segformer_mit-b0.py"),
    "mask2former": ("mmseg", "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"),
}

#: One backbone of each kind: settings beside ``out_indices``, and channels of its maps.
BACKBONES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "STViTSwin": (dict(arch=dict(SWIN, depths=(2, 2, 6, 2)), img_size=128), (16, 32, 64, 128)),
    "SparseSwin": (
        dict(
            arch=dict(num_tokens=5, token_dim=96, num_heads=4, depth=1),
            trunk=SWIN,
            img_size=128,
            window_size=4,
        ),
        (16, 32, 64, 96),
    ),
    "SwinTransformer": (dict(arch=SWIN, img_size=128, window_size=4), (16, 32, 64, 128)),
    "VisionTransformer": (
        dict(
            arch=VIT,
            img_size=128,
            plan=[dict(span=(1, 3), reduce=dict(type="ToMe", r=9), recover=dict(type="Scatter"))],
        ),
        (32,),
    ),
}

#: Numbers of a shipped config and what they become; strides and the like keep theirs.
NARROW = {256: 64, 512: 64, 1024: 64, 2048: 64, 128: 32, 2000: 40, 1000: 40, 12544: 64}
KEPT = {"strides", "featmap_strides", "feature_strides", "in_index", "mean", "std", "img_scale"}
SET = dict(num_layers=1, num_queries=20, num_dn_queries=10)


def shipped(library: str, name: str) -> Path:
    """A config that comes with mmdet or mmseg."""
    pytest.importorskip(library)
    spec = find_spec(library)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / ".mim/configs" / name


def narrow(value: Any, key: str = "") -> Any:
    """The same settings with fewer channels, layers, queries and proposals."""
    if isinstance(value, Mapping):
        return {k: SET.get(k, narrow(v, k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [narrow(v, key) for v in value]
    if type(value) is int and key not in KEPT:
        return NARROW.get(value, value)
    return value


def dense_config(head: str, backbone: str | dict[str, Any], **settings: Any) -> ConfigDict:
    """A shipped model with one of our backbones: what a user changes, and narrower.

    Args:
        head: a key of ``HEADS``.
        backbone: a key of ``BACKBONES``, or whole settings.
        **settings: of the backbone.
    """
    library, path = HEADS[head]
    model = Config.fromfile(shipped(library, path), import_custom_modules=False).model
    if isinstance(backbone, str):
        given, channels = BACKBONES[backbone]
        kind = f"tokensparse.{backbone}"
        model.backbone = dict(type=kind, out_indices=indices(head, backbone), **given)
        model.backbone.update(settings)
    else:
        with torch.device("meta"):
            channels = MODELS.build(dict(backbone, **settings)).out_channels
        model.backbone = dict(backbone, **settings)
    settings = model.pop("backbone")
    model = ConfigDict(narrow(model))
    model.backbone = settings
    model.pop("pretrained", None)
    if model.type in ("DINO", "DeformableDETR"):
        model.bbox_head.embed_dims = 64
    elif model.type == "EncoderDecoder":
        model.data_preprocessor.size = SIZE
    _fit(model, list(channels), plain="VisionTransformer" in settings.type)
    return model


def indices(head: str, backbone: str) -> tuple[int, ...]:
    """The last block of a ViT; the stages that a head reads of the others."""
    if backbone == "VisionTransformer":
        return (VIT["depth"] - 1,)
    return (1, 2, 3) if head in ("dino", "deformable-detr") else (0, 1, 2, 3)


def _fit(model: ConfigDict, channels: list[int], plain: bool) -> None:
    """``in_channels`` of what follows the backbone; a simple feature pyramid behind a plain ViT."""
    if not plain:
        if "neck" in model:
            model.neck.in_channels = channels[-len(model.neck.in_channels) :]
        else:
            model.decode_head.in_channels = channels
            if "auxiliary_head" in model:
                model.auxiliary_head.in_channels = channels[model.auxiliary_head.in_index]
        return
    kind = model.type
    levels = dict(num_outs=4)
    if kind in ("DINO", "DeformableDETR"):
        levels = dict(num_outs=4, scales=(2.0, 1.0, 0.5))
    elif kind in ("RetinaNet", "FCOS"):
        levels = dict(num_outs=5, scales=(2.0, 1.0, 0.5))
    elif "rpn_head" in model:
        levels = dict(num_outs=5)
    model.neck = dict(
        type="tokensparse.SimpleFeaturePyramid",
        in_channels=channels[-1],
        out_channels=64,
        **levels,
    )
    if "decode_head" in model:
        model.decode_head.in_channels = [64] * 4
        if "auxiliary_head" in model:
            model.auxiliary_head.in_channels = 64


def build(head: str, model: ConfigDict) -> BaseModel:
    """As mm's runner builds it, with plain batch norm."""
    library = HEADS[head][0]
    for name in ("mmdet", library):
        pytest.importorskip(f"{name}.utils").register_all_modules(init_default_scope=False)
    MMLogger.get_current_instance().setLevel("ERROR")  # init_weights logs every parameter
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(library):
        built = revert_sync_batchnorm(MODELS.build(model))
        built.init_weights()
    return built


def samples(head: str, size: tuple[int, int] = SIZE, batch: int = 2) -> list[Any]:
    """Two boxes with masks, or a class for every pixel."""
    if HEADS[head][0] == "mmdet":
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    meta = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
        img_padding_size=(0, 0, 0, 0),
    )
    found = []
    for _ in range(batch):
        sample = Sample(metainfo=dict(meta))
        if HEADS[head][0] == "mmdet":
            sample.gt_instances = _instances(size)
        else:
            classes = (torch.arange(size[1]) * 4 // size[1]).expand(1, *size)
            sample.gt_sem_seg = PixelData(data=classes.clone())
        found.append(sample)
    return found


def _instances(size: tuple[int, int]) -> InstanceData:
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor([[10.0, 10.0, 60.0, 70.0], [64.0, 20.0, 120.0, 90.0]])
    masks = np.zeros((2, *size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return InstanceData(bboxes=boxes, labels=torch.tensor([1, 3]), masks=BitmapMasks(masks, *size))


def train_step(head: str, model: BaseModel) -> Tensor:
    """Losses of one batch, backward; the summed loss. Gradients stay."""
    model.train()
    with DefaultScope.overwrite_default_scope(HEADS[head][0]):
        data = dict(inputs=[image(SIZE, 1)[0] for _ in range(2)], data_samples=samples(head))
        data = model.data_preprocessor(data, True)
        total, log = model.parse_losses(model(**data, mode="loss"))
    assert len(log) > 1 and all(torch.isfinite(torch.as_tensor(v)).all() for v in log.values())
    total.backward()
    return total


def without_gradient(module: nn.Module) -> list[str]:
    """Parameters that the loss does not reach."""
    return [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]


@torch.no_grad()
def predict(head: str, model: BaseModel, size: tuple[int, int] = SIZE) -> Any:
    """What the model says of one image."""
    model.eval()
    with DefaultScope.overwrite_default_scope(HEADS[head][0]):
        data = dict(inputs=[image(size, 1)[0]], data_samples=samples(head, size, 1))
        return model.test_step(data)[0]
