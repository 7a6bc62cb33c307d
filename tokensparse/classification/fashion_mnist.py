"""Fashion-MNIST: the folder of gzipped idx files that its authors and Debian hand out."""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torchvision.datasets import FashionMNIST

from tokensparse.classification.data import ImageDataset, MissingDataError, Reader, Split
from tokensparse.registry import DATASETS


class IdxReader:
    """Grey images and labels from a pair of idx files, plain or gzipped, checked by md5.

    Args:
        folder: where the files lie, named ``train-images-idx3-ubyte`` and so on, with or without
            ``.gz``.
        prefix: ``train`` or ``t10k``.
        md5: of each file's content, unpacked.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: a file is damaged, or another data set's of the same name.
    """

    def __init__(self, folder: Path, prefix: str, md5: Mapping[str, str]) -> None:
        images = self._read(folder, f"{prefix}-images-idx3-ubyte", md5)
        labels = self._read(folder, f"{prefix}-labels-idx1-ubyte", md5)
        count, rows, cols = np.frombuffer(images, ">u4", 3, offset=4).tolist()
        self.images = np.frombuffer(images, np.uint8, offset=16).reshape(count, rows, cols)
        self.labels = np.frombuffer(labels, np.uint8, offset=8)

    @staticmethod
    def _read(folder: Path, name: str, md5: Mapping[str, str]) -> bytes:
        path = folder / name
        if not path.is_file():
            path = folder / f"{name}.gz"
        raw = path.read_bytes()
        try:
            content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        except (EOFError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}; fetch it again") from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5[name]:
            raise ValueError(
                f"{path}: md5 {found} of the unpacked content, published {md5[name]}; the file is "
                "damaged or of another data set (MNIST's have the same names): fetch it again"
            )
        return content

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """A grey image and its class index."""
        return Image.fromarray(self.images[index]), int(self.labels[index])


@DATASETS.register_module()
class FashionMNISTDataset(ImageDataset):
    """Fashion-MNIST (arXiv:1708.07747): 28 x 28 grey images of clothes in 10 classes.

    torchvision's reader takes only its own folder, unpacked; this one also reads the folder of
    gzipped files as published, or as Debian's package ``dataset-fashion-mnist`` installs it.

    Args:
        root: folder with the four idx files, gzipped or not, or torchvision's
            (``root/FashionMNIST/raw``).
        split: ``train`` (60,000) or ``val`` (the 10,000 test images).
        img_size: side in pixels, or (height, width).
        augment: arguments of timm's ``create_transform``.

    Raises:
        MissingDataError: files are absent.
        ValueError: a file's content is not the published one.
    """

    how = (
        "on Debian and Ubuntu: apt-get install dataset-fashion-mnist, then "
        "dataset.root=/usr/share/datasets/fashion-mnist; elsewhere the four .gz files of "
        "github.com/zalandoresearch/fashion-mnist (data/fashion), or torchvision.datasets."
        "FashionMNIST(root, download=True)"
    )
    #: Of the published files, unpacked. Repacking changes the md5 of a .gz (Debian's differ from
    #: the published ones in the gzip header alone), not that of its content.
    md5: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }

    def __init__(
        self,
        root: str,
        split: Split,
        img_size: int | tuple[int, int] = 28,
        augment: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        super().__init__(split, img_size, augment)

    def open(self) -> tuple[Reader, Sequence[str]]:
        """Read, unpack and check the two files of the split."""
        raw = self.root / "FashionMNIST" / "raw"
        folder = raw if raw.is_dir() else self.root
        try:
            reader = IdxReader(folder, "train" if self.split == "train" else "t10k", self.md5)
        except FileNotFoundError as error:
            missing = error.filename or folder
            raise MissingDataError("Fashion-MNIST", missing, self.how) from error
        return reader, FashionMNIST.classes
