"""Data sets and augmentation of classification."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from timm.data import auto_augment

from tokensparse.classification import (
    CIFARDataset,
    DigitsDataset,
    ImageFolderDataset,
    ImageNet100Dataset,
    ImageNetDataset,
    ImagePreprocessor,
    MissingDataError,
    RepeatedAugmentSampler,
)
from tokensparse.classification.augmentation import ImageTransform, posterize

TASKS = sorted((Path(__file__).parents[1] / "configs/_base_/tasks").glob("*.py"))


def test_digits_are_uint8_stratified_and_fixed() -> None:
    train, val = DigitsDataset("train", 32), DigitsDataset("val", 32)
    assert (len(train), len(val)) == (1437, 360)
    counts = np.bincount(val.reader.labels)
    assert counts.min() >= 35
    assert counts.max() <= 37
    item = val[0]
    assert item["inputs"].dtype == torch.uint8
    assert item["inputs"].shape == (3, 32, 32)
    assert item["inputs"].max() > 200
    torch.testing.assert_close(DigitsDataset("val", 32)[5]["inputs"], val[5]["inputs"])


def write_images(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (20, 12), (10 * i, 0, 0)).save(folder / f"{i}.png")


def test_image_folder(tmp_path: Path) -> None:
    for split, classes in (("train", "ab"), ("val", "b")):
        for name in classes:
            write_images(tmp_path / split / name)
    train = ImageFolderDataset(str(tmp_path), "train", 16)
    val = ImageFolderDataset(str(tmp_path), "val", (16, 24))
    assert train.metainfo["classes"] == ("a", "b")
    assert [val[i]["labels"] for i in range(len(val))] == [1, 1]
    assert val[0]["inputs"].shape == (3, 16, 24)


def test_imagenet100_reads_its_own_labels(tmp_path: Path) -> None:
    (tmp_path / "Labels.json").write_text(json.dumps({"n2": "two", "n1": "one"}))
    write_images(tmp_path / "train.X1" / "n2")
    write_images(tmp_path / "train.X2" / "n1")
    for name in ("n1", "n2"):
        write_images(tmp_path / "val.X" / name)
    train = ImageNet100Dataset(str(tmp_path), "train", 16)
    assert train.metainfo["classes"] == ("n1", "n2")
    assert sorted(train[i]["labels"] for i in range(len(train))) == [0, 0, 1, 1]
    assert len(ImageNet100Dataset(str(tmp_path), "val", 16)) == 4


@pytest.mark.parametrize(
    "build",
    [
        lambda root: ImageFolderDataset(root, "train"),
        lambda root: ImageNetDataset(root, "val"),
        lambda root: ImageNet100Dataset(root, "train"),
        lambda root: CIFARDataset(root, "train", 100),
    ],
)
def test_missing_data_tell_what_where_how_and_what_needs_none(build, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        build(str(tmp_path / "nowhere"))
    text = str(caught.value)
    assert str(tmp_path / "nowhere") in text
    for part in ("not found", "looked for", "how to get it", "configs/sparseswin_cls.py"):
        assert part in text


def test_preprocessor_normalises_mixes_and_erases_on_the_batch() -> None:
    raw = {"inputs": torch.full((4, 3, 8, 8), 100, dtype=torch.uint8), "labels": torch.arange(4)}
    plain = ImagePreprocessor(mean=(100, 100, 100), std=(10, 20, 30))
    out = plain(raw, training=True)
    assert out["inputs"].abs().max() == 0.0
    assert "targets" not in out["data_samples"]
    mixing = ImagePreprocessor(mixup=dict(mixup_alpha=1.0, num_classes=5, label_smoothing=0.0))
    targets = mixing(raw, training=True)["data_samples"]["targets"]
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    erasing = ImagePreprocessor(random_erase=dict(probability=1.0, mode="const"))
    assert (erasing(raw, training=True)["inputs"] == 0).any()
    assert not (erasing(raw, training=False)["inputs"] == 0).any()
    assert "targets" not in mixing(raw, training=False)["data_samples"]
    with pytest.raises(ValueError, match=r"even batch_size"):
        mixing({k: v[:3] for k, v in raw.items()}, training=True)
    with pytest.raises(ValueError, match=r"1 channels, but mean has 3"):
        plain({**raw, "inputs": raw["inputs"][:, :1]})


def test_repeated_augmentation_repeats_within_an_epoch() -> None:
    sampler = RepeatedAugmentSampler(list(range(30)), num_repeats=3, seed=0)
    first = list(sampler)
    assert len(first) == 30
    assert len(set(first)) == 10
    sampler.set_epoch(1)
    assert list(sampler) != first


@pytest.mark.parametrize("path", TASKS, ids=lambda p: p.stem)
def test_timm_takes_the_augmentation_of_every_task(path: Path) -> None:
    cfg = Config.fromfile(path)
    if "augment" not in cfg.train_dataloader.dataset:
        pytest.skip("no classification task")
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        data = loader.dataset
        transform = ImageTransform(data.img_size, data.split == "train", data.augment)
        out = transform(Image.fromarray(noise))
        assert out.dtype == torch.uint8
        assert out.shape == (3, data.img_size, data.img_size)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "v0", "augmix-m5-w4"])
def test_every_magnitude_of_a_policy_runs(policy: str) -> None:
    """Pillow 13 refuses to keep no bits, which timm asks for: that is no bad image."""
    ops = []

    def found(part) -> None:
        if isinstance(part, auto_augment.AugmentOp):
            ops.append(part)
        for name in ("transforms", "ops", "policy"):
            for one in getattr(part, name, part if isinstance(part, list) else ()):
                found(one)

    found(ImageTransform(32, True, dict(auto_augment=policy)).transform)
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    assert len(ops) > 5
    for op in ops:
        op.prob, op.magnitude_std = 1.0, 0
        for magnitude in range(11):
            op.magnitude = magnitude
            assert op(image).size == (32, 32)
    black = [op for op in ops if op.aug_fn is posterize]
    assert black and not np.asarray(posterize(image, 0)).any()
