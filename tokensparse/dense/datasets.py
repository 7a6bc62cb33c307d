"""DigitScenes under mmdet's and mmseg's data sets; ``custom_imports`` of a config names this file.

Both write the scenes on first use, then read COCO JSON and PNG maps as for COCO and ADE20K.
"""

from typing import Any, ClassVar

from mmdet.datasets import CocoDataset
from mmseg.datasets import BaseSegDataset

from tokensparse.dense.digit_scenes import (
    CLASSES,
    SEMANTIC_CLASSES,
    SPLITS,
    SceneSettings,
    ensure_scenes,
)
from tokensparse.registry import DATASETS

#: One colour a digit, and black for the background.
PALETTE = [
    *((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    *((140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207)),
]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r}; legal: {list(SPLITS)}")


@DATASETS.register_module()
class DigitScenesDetection(CocoDataset):
    """DigitScenes for detection and instance segmentation: mmdet's COCO reader.

    Args:
        split: ``train`` or ``val``.
        data_root: folder, written on first use.
        scenes: fields of :class:`SceneSettings` (train, val, size, seed).
        kwargs: those of ``CocoDataset``, such as ``pipeline``.

    Raises:
        ValueError: an unknown split, or a folder with other content.
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": CLASSES, "palette": PALETTE}

    def __init__(
        self,
        split: str,
        data_root: str = "data/digit-scenes",
        scenes: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_split(split)
        ensure_scenes(data_root, SceneSettings(**(scenes or {})))
        super().__init__(
            data_root=data_root,
            ann_file=f"annotations/{split}.json",
            data_prefix=dict(img=f"images/{split}/"),
            **kwargs,
        )


@DATASETS.register_module()
class DigitScenesSegmentation(BaseSegDataset):
    """DigitScenes for semantic segmentation: mmseg's reader; 0 is background, digit d is d + 1.

    Args:
        split: ``train`` or ``val``.
        data_root: folder, written on first use.
        scenes: fields of :class:`SceneSettings` (train, val, size, seed).
        kwargs: those of ``BaseSegDataset``, such as ``pipeline``.

    Raises:
        ValueError: an unknown split, or a folder with other content.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": SEMANTIC_CLASSES,
        "palette": [(0, 0, 0), *PALETTE],
    }

    def __init__(
        self,
        split: str,
        data_root: str = "data/digit-scenes",
        scenes: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_split(split)
        ensure_scenes(data_root, SceneSettings(**(scenes or {})))
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"semantic/{split}"),
            img_suffix=".png",
            seg_map_suffix=".png",
            **kwargs,
        )
