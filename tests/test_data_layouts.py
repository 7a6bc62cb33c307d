"""Tiny-ImageNet, STL-10, ImageNet's folders: read as they are laid out, refused where not."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import STL10

from tokensparse.classification import (
    ImageFolderDataset,
    ImageNet100Dataset,
    ImageNetDataset,
    MissingDataError,
    STL10Dataset,
    TinyImageNetDataset,
)


class TwoClasses(TinyImageNetDataset):
    """The same layout, two classes of two images."""

    num_classes = 2
    per_class = {"train": 2, "val": 1}


def tiny(root: Path) -> Path:
    (root / "wnids.txt").write_text("n02\nn01\n")
    for name in ("n01", "n02"):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / f"{name}_{i}.JPEG")
    images = root / "val" / "images"
    images.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (64, 64)).save(images / f"val_{i}.JPEG")
    rows = "val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t1\t1\t60\t60\n"
    (root / "val" / "val_annotations.txt").write_text(rows)
    return root


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = str(tiny(tmp_path))
    train, val = TwoClasses(root, "train", 32), TwoClasses(root, "val", 32)
    assert train.metainfo["classes"] == ("n01", "n02")
    assert [train[i]["labels"] for i in range(4)] == [0, 0, 1, 1]
    assert [val[i]["labels"] for i in range(2)] == [1, 0]
    assert val[0]["inputs"].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("wnids.txt", "wnids.txt of Tiny-ImageNet not found"),
        ("train/n01/images/n01_1.JPEG", "4 images of train wanted, 2 and 3 there"),
        ("val/images/val_0.JPEG", "2 images of val wanted, 2 and 1 there"),
        ("val/val_annotations.txt", "val_annotations.txt of Tiny-ImageNet not found"),
    ],
)
def test_an_incomplete_tiny_imagenet(gone: str, message: str, tmp_path: Path) -> None:
    root = tiny(tmp_path)
    (root / gone).unlink()
    with pytest.raises(MissingDataError, match=message):
        TwoClasses(str(root), "val" if gone.startswith("val") else "train")


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's files with two images, and what their md5 says."""
    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    files = {"test_X.bin": images.tobytes(), "test_y.bin": bytes([3, 10])}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = [[k, hashlib.md5(v, usedforsecurity=False).hexdigest()] for k, v in files.items()]
    monkeypatch.setattr(STL10, "train_list", [])
    monkeypatch.setattr(STL10, "test_list", sums)
    data = STL10Dataset(str(tmp_path), "val", 96, dict(crop_pct=1.0))
    assert [data[i]["labels"] for i in range(2)] == [2, 9]
    assert (data[0]["inputs"].numpy() == images[0].transpose(0, 2, 1)).all()
    assert len(data.metainfo["classes"]) == 10
    (folder / "test_y.bin").write_bytes(bytes([3, 9]))
    with pytest.raises(MissingDataError, match=r"STL-10 \(whole and unchanged\) not found"):
        STL10Dataset(str(tmp_path), "val")


def test_class_folders_that_are_absent_are_named(tmp_path: Path) -> None:
    class Two(ImageNetDataset):
        num_classes = 2

    for place in ("train/n01", "train/n02", "val/n01"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "0.JPEG")
    Two(str(tmp_path), "train")
    with pytest.raises(MissingDataError, match=r"1 class folders of ImageNet-1K.*\(n02 "):
        Two(str(tmp_path), "val")
    (tmp_path / "Labels.json").write_text('{"n01": "a", "n02": "c", "n03": "b"}')
    for split in ("train", "val"):
        with pytest.raises(MissingDataError, match=r"class folders of ImageNet-100 \(n0"):
            ImageNet100Dataset(str(tmp_path), split)
    (tmp_path / "Labels.json").write_text('{"n01": "a"}')
    with pytest.raises(ValueError, match=r"train: n02: no class of ImageNet-100, so these images"):
        ImageNet100Dataset(str(tmp_path), "train")
    (tmp_path / "Labels.json").write_text('{"n01": "a')
    with pytest.raises(MissingDataError, match=r"a whole Labels.json of ImageNet-100 .*\n.*Labels"):
        ImageNet100Dataset(str(tmp_path), "train")


def test_nothing_is_left_out_unsaid(tmp_path: Path) -> None:
    """Folders that are no class, and classes without an image, stop a run before it starts."""
    for place in ("train/cat", "train/dog", "val/cat", "val/Dog", "val/.thumbs"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "0.png")
    ImageFolderDataset(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"val: Dog: no class of image folder, .* left out"):
        ImageFolderDataset(str(tmp_path), "val")
    (tmp_path / "val/Dog").rename(tmp_path / "val/dog")
    assert len(ImageFolderDataset(str(tmp_path), "val")) == 2
    (tmp_path / "val/dog/0.png").unlink()
    with pytest.raises(MissingDataError, match=r"images of image folder in 1 class folders .dog."):
        ImageFolderDataset(str(tmp_path), "val")
