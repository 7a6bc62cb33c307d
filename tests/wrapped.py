"""Models in a TokenModel, for tests: the least one, a Mask R-CNN and an UPerNet of few channels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from small import SWIN, image
from torch import Tensor, nn

from tokensparse import TokenModel
from tokensparse.reducers.topk import TopK
from tokensparse.registry import MODELS

PLAN = [
    dict(
        stage=2,
        span=(1, 2),
        reduce=dict(type="Windowed", window=4, reducer=dict(type="TopK", keep=5)),
        recover=dict(type="AttentionRestore"),
    )
]
#: 128 x 160 pixels, the second image smaller on both sides and no multiple of any stride.
SIZES = ((128, 160), (90, 101))


class TopKWithLoss(TopK):
    """Top-K whose auxiliary loss pulls every size of a kept token to 3; with a parameter."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.target = nn.Parameter(torch.tensor(3.0))

    def loss(self, record: Any) -> dict[str, Tensor]:
        return {"size": (record.size - self.target).square().mean()}


WITH_LOSS = [dict(stage=2, span=(1, 2), reduce=dict(type=TopKWithLoss, keep=0.5))]


def backbone(**settings: Any) -> dict[str, Any]:
    given = dict(
        type="tokensparse.SwinTransformer",
        arch=SWIN,
        img_size=128,
        window_size=4,
        window_padding="masked",
        window_shift="always",
        out_indices=(0, 1, 2, 3),
        plan=PLAN,
    )
    return {**given, **settings}


class Summing(BaseModel):
    """The least mm model: backbone, one score an image."""

    def __init__(self, backbone: Any = None, passes: int = 1, data_preprocessor: Any = None):
        super().__init__(data_preprocessor)
        self.backbone = None if backbone is None else MODELS.build(backbone)
        self.head = nn.BatchNorm2d(16)
        self.passes = passes

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        assert self.backbone is not None
        for _ in range(self.passes):
            maps = self.backbone(inputs)
        score = sum(m.square().mean((1, 2, 3)) for m in (self.head(maps[0]), *maps[1:]))
        return {"loss_own": score.mean()} if mode == "loss" else score


def least(**settings: Any) -> TokenModel:
    torch.manual_seed(0)
    return TokenModel(dict(type=Summing, backbone=backbone(**settings))).eval()


def samples(sizes: Any = SIZES) -> list[BaseDataElement]:
    return [BaseDataElement(metainfo=dict(img_shape=size)) for size in sizes]


def batch(sizes: Any = SIZES, noise: float = 0.0) -> Tensor:
    """Images whose padding holds zeros, or noise."""
    x = image((128, 160), len(sizes))
    for row, (h, w) in zip(x, sizes, strict=True):
        other = noise * torch.randn(x.shape[1:])
        row[:, h:], row[:, :, w:] = other[:, h:], other[:, :, w:]
    return x


def mm_config(library: str, **settings: Any) -> ConfigDict:
    name = dict(mmdet="mask-rcnn_r50_fpn", mmseg="upernet_swin")[library]
    module = pytest.importorskip(library)
    path = Path(module.__file__).parent / ".mim/configs/_base_/models" / f"{name}.py"
    model = Config.fromfile(path).model
    model.backbone = backbone(**settings)
    channels = [16, 32, 64, 128]
    if library == "mmdet":
        model.neck.update(in_channels=channels, out_channels=16)
        model.rpn_head.update(in_channels=16, feat_channels=16)
        for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
            extractor.out_channels = 16
        model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=3)
        model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=3)
        model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=10)
    else:
        norm = dict(type="BN")
        head = dict(channels=16, num_classes=5, norm_cfg=norm)
        model.decode_head.update(in_channels=channels, **head)
        model.auxiliary_head.update(in_channels=64, **head)
        model.data_preprocessor.update(size=(128, 160), test_cfg=dict(size=(128, 160)))
    return model


def build_mm(library: str, test_cfg: Any = None, **settings: Any) -> BaseModel:
    """Wrapped, and built as mm's runner builds it; ``settings`` are the backbone's."""
    pytest.importorskip(f"{library}.utils").register_all_modules(init_default_scope=False)
    config = mm_config(library, **settings)
    config.test_cfg.update(test_cfg or {})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(dict(type="tokensparse.TokenModel", model=config))
    for name, parameter in model.named_parameters():
        if "fc_" in name or "conv_seg" in name:  # scores and boxes that depend on the features
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def mm_samples(model: BaseModel, sizes: Any = SIZES) -> list[Any]:
    if hasattr(model, "roi_head") or hasattr(model, "bbox_head"):
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    metas = [
        dict(
            img_shape=s,
            ori_shape=s,
            pad_shape=(128, 160),
            batch_input_shape=(128, 160),
            scale_factor=(1.0, 1.0),
            img_padding_size=(0, 160 - s[1], 0, 128 - s[0]),
        )
        for s in sizes
    ]
    return [Sample(metainfo=meta) for meta in metas]


def numbers(results: list[Any]) -> list[Tensor]:
    if "pred_instances" in results[0]:
        found = [r.pred_instances for r in results]
        return [f[name] for f in found for name in sorted(f.keys())]
    return [r.seg_logits.data for r in results]


@torch.no_grad()
def predict(model: BaseModel, x: Tensor, sizes: Any = SIZES) -> list[Tensor]:
    return numbers(model(x, mm_samples(model, sizes), mode="predict"))
