"""DigitScenes: what the issue of the data promises, and reading by mmdet's and mmseg's readers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokensparse.dense.digit_scenes import (
    MAX_IOU,
    MIN_VISIBLE,
    SceneSettings,
    box_of,
    digits_of,
    ensure_scenes,
    iou,
    make_scene,
)

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

SMALL = SceneSettings(train=3, val=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_scenes(tmp_path_factory.mktemp("data") / "scenes", SMALL)


def test_scenes_are_what_they_claim() -> None:
    sides = []
    for number in range(12):
        scene = make_scene(SMALL, "train", number)
        assert scene.image.shape == (192, 192, 3) and scene.image.dtype == np.uint8
        assert 3 <= len(scene.labels) <= 9
        assert scene.masks.sum(0).max() == 1  # true occlusion: no pixel belongs to two
        boxes = [box_of(mask) for mask in scene.masks]
        sides += [max(box[2:]) for box in boxes]
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            assert mask.any() and (scene.semantic[mask] == label + 1).all()
        assert (scene.semantic == 0).sum() == 192 * 192 - scene.masks.sum()
        # visible boxes are inside the whole ones, whose overlap is bounded
        assert all(iou(a, b) <= 2 * MAX_IOU for a in boxes for b in boxes if a is not b)
    assert min(sides) >= MIN_VISIBLE * 16 - 1 and max(sides) <= 80 and max(sides) > 50


def test_scenes_depend_on_seed_split_and_number_alone() -> None:
    again = [make_scene(SMALL, "val", 1) for _ in range(2)]
    assert np.array_equal(again[0].image, again[1].image)
    others = [
        make_scene(SMALL, "val", 0),
        make_scene(SMALL, "train", 1),
        make_scene(SceneSettings(seed=1), "val", 1),
    ]
    assert not any(np.array_equal(again[0].image, other.image) for other in others)
    more = make_scene(SceneSettings(train=50, val=50), "val", 1)
    assert np.array_equal(more.image, again[0].image)


def test_splits_share_no_digit() -> None:
    train, val = (digits_of(split)[0].reshape(-1, 64) for split in ("train", "val"))
    assert len(train) == 1437 and len(val) == 360


def test_files_agree(root: Path) -> None:
    found = json.loads((root / "annotations" / "train.json").read_text())
    assert len(found["images"]) == 3
    assert [c["name"] for c in found["categories"]] == [str(i) for i in range(10)]
    scene = make_scene(SMALL, "train", 2)
    own = [a for a in found["annotations"] if a["image_id"] == 2]
    assert [a["category_id"] - 1 for a in own] == scene.labels
    assert [tuple(a["bbox"]) for a in own] == [box_of(mask) for mask in scene.masks]
    written = np.asarray(Image.open(root / "semantic" / "train" / "000002.png"))
    assert np.array_equal(written, scene.semantic)


def test_read_by_mmdet(root: Path) -> None:
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    from tokensparse.dense.datasets import DigitScenesDetection

    pipeline = [
        dict(type="mmdet.LoadImageFromFile"),
        dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
        dict(type="mmdet.PackDetInputs"),
    ]
    scenes = dict(train=3, val=2)
    data = DigitScenesDetection("val", str(root), scenes, pipeline=pipeline)
    assert len(data) == 2 and data.metainfo["classes"] == tuple("0123456789")
    sample, scene = data[1]["data_samples"].gt_instances, make_scene(SMALL, "val", 1)
    assert sample.labels.tolist() == scene.labels
    assert np.array_equal(sample.masks.masks.astype(bool), scene.masks)
    left, top, width, height = box_of(scene.masks[0])
    assert sample.bboxes.tensor[0].tolist() == [left, top, left + width, top + height]


def test_read_by_mmseg(root: Path) -> None:
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    from tokensparse.dense.datasets import DigitScenesSegmentation

    pipeline = [
        dict(type="mmseg.LoadImageFromFile"),
        dict(type="mmseg.LoadAnnotations"),
        dict(type="mmseg.PackSegInputs"),
    ]
    data = DigitScenesSegmentation("val", str(root), dict(train=3, val=2), pipeline=pipeline)
    assert len(data) == 2 and len(data.metainfo["classes"]) == 11
    found = data[0]["data_samples"].gt_sem_seg.data[0].numpy()
    assert np.array_equal(found, make_scene(SMALL, "val", 0).semantic)


def test_a_folder_is_used_again_or_refused(root: Path, tmp_path: Path) -> None:
    before = (root / "scenes.json").stat().st_mtime_ns
    assert ensure_scenes(root, SMALL) == root
    assert (root / "scenes.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other scenes \(seed=0, wanted 7\)"):
        ensure_scenes(root, SceneSettings(train=3, val=2, seed=7))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="no folder of DigitScenes"):
        ensure_scenes(tmp_path / "mine", SMALL)


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokensparse.dense.digit_scenes.write_split", full)
    with pytest.raises(OSError, match="No space"):
        ensure_scenes(tmp_path / "scenes", SMALL)
    assert list(tmp_path.iterdir()) == []
