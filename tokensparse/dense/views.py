"""Test-time augmentation: a config that tests on several views of each image.

The views and their merging are mmengine's, mmdet's and mmseg's own; this only rearranges a config,
as ``--tta`` of their ``tools/test.py`` does.
"""

from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from tokensparse.backbones import inner_model

#: What mmdet tests with where a config says nothing: the image and its mirror image.
_DET_MODEL = dict(
    type="DetTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
)
_DET_META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip")


def test_on_views(cfg: Config) -> None:
    """Put ``tta_model`` around the model and ``tta_pipeline`` under the test data, in place.

    A config of mmdet's scope without them gets what mmdet takes: a horizontal flip, boxes merged
    by NMS at IoU 0.5.

    Args:
        cfg: a run's config.

    Raises:
        ValueError: the config names no ``tta_model`` or ``tta_pipeline`` and is not mmdet's; or
            its model predicts masks, which mmdet's ``DetTTAModel`` cannot merge.
    """
    detector = cfg.get("default_scope") == "mmdet"
    model, pipeline = cfg.get("tta_model"), cfg.get("tta_pipeline")
    missing = [n for n, v in (("tta_model", model), ("tta_pipeline", pipeline)) if v is None]
    if missing and not detector:
        raise ValueError(
            f"--tta: the config names no {' and no '.join(missing)}; mmseg's "
            "_base_/datasets/ade20k.py and the configs that inherit from it have both"
        )
    model = ConfigDict(_DET_MODEL if model is None else model)
    if model.type == "DetTTAModel" and _masks(cfg.model):
        raise ValueError(
            "--tta: mmdet's DetTTAModel merges boxes only, and this model predicts masks; test "
            "without --tta, or name a tta_model that merges masks"
        )
    data = cfg.test_dataloader.dataset
    while "dataset" in data:
        data = data.dataset
    data.pipeline = _flipped(data.pipeline) if pipeline is None else pipeline
    cfg.model = ConfigDict(model, module=cfg.model)


test_on_views.__test__ = False  # no test of pytest's


def _masks(model: Any) -> bool:
    """Whether a detector's settings hold a mask head."""
    inner = inner_model(model)
    return any(part.get("mask_head") for part in (inner, inner.get("roi_head") or {}))


def _flipped(pipeline: Any) -> list[Any]:
    """A test pipeline whose last step packs the image and its mirror image."""
    *steps, pack = deepcopy(list(pipeline))
    meta = tuple(pack.get("meta_keys") or _DET_META)
    pack["meta_keys"] = tuple(dict.fromkeys((*meta, "flip", "flip_direction")))
    flips = [dict(type="RandomFlip", prob=prob) for prob in (1.0, 0.0)]
    return [*steps, dict(type="TestTimeAug", transforms=[flips, [pack]])]
