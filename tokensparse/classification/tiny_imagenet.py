"""Tiny-ImageNet: the folder that its zip unpacks to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import default_loader

from tokensparse.classification.data import ImageDataset, MissingDataError, Reader, Split
from tokensparse.registry import DATASETS


class ListReader:
    """Images by path.

    Args:
        samples: (path, class index).
    """

    def __init__(self, samples: Sequence[tuple[Path, int]]) -> None:
        self.samples = [(str(path), label) for path, label in samples]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An RGB image and its class index."""
        path, label = self.samples[index]
        return default_loader(path), label


@DATASETS.register_module()
class TinyImageNetDataset(ImageDataset):
    """Tiny-ImageNet (Stanford CS231n, 2015): 64 x 64 images of 200 classes of ImageNet.

    Classes are the lines of the data set's own ``wnids.txt``, sorted. Nobody publishes a checksum;
    the numbers of classes and images are checked instead.

    Args:
        root: the folder ``tiny-imagenet-200``.
        split: ``train`` (100,000 images, 500 a class) or ``val`` (10,000; the test images have no
            labels).
        img_size: side in pixels, or (height, width).
        augment: arguments of timm's ``create_transform``.

    Raises:
        MissingDataError: a file, class folder or image is absent.
    """

    how = (
        "download http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB), unpack it, and let "
        "dataset.root be its folder tiny-imagenet-200"
    )
    num_classes = 200
    per_class = {"train": 500, "val": 50}

    def __init__(
        self,
        root: str,
        split: Split,
        img_size: int | tuple[int, int] = 64,
        augment: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        super().__init__(split, img_size, augment)

    def open(self) -> tuple[Reader, Sequence[str]]:
        """List the images of the split, and count them."""
        classes = sorted(set(self._lines("wnids.txt")))
        index = {name: i for i, name in enumerate(classes)}
        if self.split == "train":
            found = [
                (path, index[name])
                for name in classes
                for path in sorted(self.root.glob(f"train/{name}/images/*.JPEG"))
            ]
        else:
            rows = [line.split("\t")[:2] for line in self._lines("val/val_annotations.txt")]
            there = {path.name for path in self.root.glob("val/images/*.JPEG")}
            found = [
                (self.root / "val/images" / name, index[label])
                for name, label in rows
                if name in there and label in index
            ]
        wanted = self.num_classes * self.per_class[self.split]
        if len(classes) != self.num_classes or len(found) != wanted:
            what = (
                f"Tiny-ImageNet ({self.num_classes} classes and {wanted:,} images of {self.split} "
                f"wanted, {len(classes)} and {len(found):,} there)"
            )
            raise MissingDataError(what, self.root, self.how)
        return ListReader(found), classes

    def _lines(self, name: str) -> list[str]:
        path = self.root / name
        if not path.is_file():
            raise MissingDataError(f"{name} of Tiny-ImageNet", path, self.how)
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
