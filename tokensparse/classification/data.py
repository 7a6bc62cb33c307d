"""Image data sets through one code path: a reader gives image and class, timm augments to uint8."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, find_classes, make_dataset

from tokensparse.classification.augmentation import ImageTransform
from tokensparse.registry import DATASETS

Split = Literal["train", "val"]


class MissingDataError(FileNotFoundError):
    """Data that are not there: what, where looked for, how obtained, which config needs none."""

    def __init__(self, what: str, where: str | Path, how: str) -> None:
        super().__init__(
            f"{what} not found.\n  looked for: {Path(where).resolve()}\n  how to get it: {how}\n  "
            "needs no data: "
            "python tools/train.py configs/sparseswin_cls.py"
        )


class Reader(Protocol):
    """What torchvision's data sets do: length, and (image, class index) by index."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image (PIL) and its class index."""


class ImageDataset(Dataset):
    """The code path that all data sets share.

    Args:
        split: ``train`` augments; ``val`` resizes and crops the centre.
        img_size: side in pixels, or (height, width).
        augment: arguments of timm's ``create_transform``.

    Raises:
        MissingDataError: the data are not where they should be.
        ValueError: an unknown split.
    """

    nested_configs: ClassVar[Mapping[str, Any]] = {"augment": create_transform}

    def __init__(
        self,
        split: Split,
        img_size: int | tuple[int, int] = 224,
        augment: Mapping[str, Any] | None = None,
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r}; legal: 'train', 'val'")
        self.split = split
        self.img_size = img_size if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.transform = ImageTransform(self.img_size, split == "train", augment or {})
        self.reader, classes = self.open()
        self.metainfo = {"classes": tuple(classes)}

    @abstractmethod
    def open(self) -> tuple[Reader, Sequence[str]]:
        """The reader of this split, and the names of all classes."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``inputs`` (3, height, width) uint8 and ``labels``, the class index."""
        image, label = self.reader[index]
        return {"inputs": self.transform(image.convert("RGB")), "labels": int(label)}


@DATASETS.register_module()
class DigitsDataset(ImageDataset):
    """The 1,797 handwritten digits that come with scikit-learn (8 x 8, 16 grey levels), upsampled.

    A fixed stratified split: 1,437 to train, 360 to validate. Images are enlarged once by Lanczos,
        before any crop.
    """

    def open(self) -> tuple[Reader, Sequence[str]]:
        """Read the installed data, split, enlarge."""
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            how = "pip install scikit-learn (it is in the 'demo' extra: pip install -e .[demo])"
            raise MissingDataError("scikit-learn's digits", "scikit-learn", how) from error
        images, labels = load_digits(return_X_y=True)
        index = np.arange(len(labels))
        parts = train_test_split(index, test_size=360, random_state=0, stratify=labels)
        index = parts[0] if self.split == "train" else parts[1]
        pixels = np.round(images[index].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        return DigitsReader(pixels, labels[index], self.img_size), [str(d) for d in range(10)]


class DigitsReader:
    """Small grey images, enlarged once when built.

    Args:
        pixels: (images, 8, 8) uint8.
        labels: (images,).
        img_size: side in pixels, or (height, width).
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, img_size: Any) -> None:
        height, width = img_size if isinstance(img_size, Sequence) else (img_size, img_size)
        self.images = [
            Image.fromarray(p).resize((width, height), Image.Resampling.LANCZOS) for p in pixels
        ]
        self.labels = labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """A grey image and its digit."""
        return self.images[index], int(self.labels[index])


class FolderReader:
    """Images in one folder per class, below one or several roots.

    Args:
        folders: roots; each holds class folders.
        classes: names of the class folders, in the order of the class indices.
    """

    def __init__(self, folders: Sequence[Path], classes: Sequence[str]) -> None:
        index = {name: i for i, name in enumerate(classes)}
        self.samples = [
            sample
            for folder in folders
            for sample in make_dataset(str(folder), index, IMG_EXTENSIONS, allow_empty=True)
        ]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An RGB image and its class index."""
        path, label = self.samples[index]
        return default_loader(path), label


def whole_folders(
    folders: Sequence[Path],
    classes: Sequence[str],
    what: str,
    where: Path,
    how: str,
    every_class: bool = True,
) -> FolderReader:
    """A reader of all that lies there: no image and no class is left out unsaid.

    Args:
        folders: roots; each holds class folders. Hidden folders are not looked at.
        classes: names of the class folders.
        what: name of the data, for messages.
        where: place of the data, for messages.
        how: where they come from.
        every_class: each class must have a folder.

    Raises:
        MissingDataError: a class without its folder, or one without images.
        ValueError: a folder that is no class.
    """
    folders = [folder for folder in folders if folder.is_dir()]
    there = [f for folder in folders for f in sorted(folder.iterdir()) if f.is_dir()]
    strange = [f for f in there if f.name not in set(classes) and f.name[0] not in "._"]
    if strange:
        names = ", ".join(f.name for f in strange[:3]) + (" ..." if len(strange) > 3 else "")
        raise ValueError(
            f"{strange[0].parent.resolve()}: {names}: no class of {what}, so these images would be "
            "left out; rename, move or remove what does not belong there"
        )
    absent = sorted(set(classes) - {f.name for f in there}) if every_class else []
    if absent:
        told = f"{len(absent)} class folders of {what} ({', '.join(absent[:3])} ...)"
        raise MissingDataError(told, where, how)
    reader = FolderReader(folders, classes)
    seen = {label for _, label in reader.samples}
    empty = [n for n, name in enumerate(classes) if n not in seen]
    empty = [n for n in empty if every_class or classes[n] in {f.name for f in there}]
    if empty or not len(reader):
        names = ", ".join(classes[n] for n in empty[:3])
        told = f"images of {what}" + (f" in {len(empty)} class folders ({names})" if empty else "")
        raise MissingDataError(told, where, how)
    return reader


@DATASETS.register_module()
class ImageFolderDataset(ImageDataset):
    """Any folder of images: ``root/train/<class>/*`` and ``root/val/<class>/*``.

    Args:
        root: the folder.
        split: ``train`` or ``val``.
        img_size: side in pixels, or (height, width).
        augment: arguments of timm's ``create_transform``.
    """

    what = "image folder"
    how = "put images into <root>/train/<class>/ and <root>/val/<class>/, or set dataset.root"
    num_classes: int | None = None

    def __init__(
        self,
        root: str,
        split: Split,
        img_size: int | tuple[int, int] = 224,
        augment: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        super().__init__(split, img_size, augment)

    def open(self) -> tuple[Reader, Sequence[str]]:
        """List the class folders of the split; classes are those of ``train`` where it is there."""
        folder = self.root / self.split
        if not folder.is_dir():
            raise MissingDataError(self.what, folder, self.how)
        named = self.root / "train" if (self.root / "train").is_dir() else folder
        try:
            classes, _ = find_classes(str(named))
        except FileNotFoundError as error:
            raise MissingDataError(f"class folders of the {self.what}", named, self.how) from error
        if self.num_classes is not None and len(classes) != self.num_classes:
            what = f"{self.what} ({self.num_classes} class folders wanted, {len(classes)} there)"
            raise MissingDataError(what, named, self.how)
        whole = self.num_classes is not None
        return whole_folders([folder], classes, self.what, folder, self.how, whole), classes


@DATASETS.register_module()
class ImageNetDataset(ImageFolderDataset):
    """ImageNet-1K (ILSVRC 2012): ``root/train/<wnid>/*.JPEG``, ``root/val/<wnid>/*.JPEG``."""

    what = "ImageNet-1K (ILSVRC 2012)"
    how = (
        "register at image-net.org, download ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar, unpack into one "
        "folder per class below train/ and val/, or set dataset.root"
    )
    num_classes = 1000


@DATASETS.register_module()
class ImageNet100Dataset(ImageDataset):
    """ImageNet-100 as Kaggle has it: ``train.X1`` .. ``train.X4``, ``val.X``, ``Labels.json``.

    Classes are the keys of the data set's own ``Labels.json``, sorted. Folders named ``train`` and
    ``val`` do, too.

    Args:
        root: the folder.
        split: ``train`` or ``val``.
        img_size: side in pixels, or (height, width).
        augment: arguments of timm's ``create_transform``.
    """

    how = "download the data set 'ImageNet100' from Kaggle and unpack it there, or set dataset.root"

    def __init__(
        self,
        root: str,
        split: Split,
        img_size: int | tuple[int, int] = 224,
        augment: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        super().__init__(split, img_size, augment)

    def open(self) -> tuple[Reader, Sequence[str]]:
        """Read ``Labels.json`` and list the folders of the split."""
        labels = self.root / "Labels.json"
        if not labels.is_file():
            raise MissingDataError("Labels.json of ImageNet-100", labels, self.how)
        try:
            named = json.loads(labels.read_text())
        except ValueError as error:
            what = f"a whole Labels.json of ImageNet-100 ({error})"
            raise MissingDataError(what, labels, self.how) from error
        if not isinstance(named, dict) or not named:
            what = "classes by name in Labels.json of ImageNet-100"
            raise MissingDataError(what, labels, self.how)
        classes = sorted(named)
        folders = sorted(self.root.glob(f"{self.split}.X*")) or [self.root / self.split]
        where = self.root / f"{self.split}.X*"
        return whole_folders(folders, classes, "ImageNet-100", where, self.how), classes


@DATASETS.register_module()
class CIFARDataset(ImageDataset):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), 32 x 32, through torchvision's reader.

    Args:
        root: folder that holds (or gets) torchvision's unpacked files.
        split: ``train`` (50,000) or ``val`` (the 10,000 test images).
        num_classes: 10 or 100.
        img_size: side in pixels, or (height, width).
        augment: arguments of timm's ``create_transform``.
        download: fetch the data where they are missing.
    """

    def __init__(
        self,
        root: str,
        split: Split,
        num_classes: Literal[10, 100] = 10,
        img_size: int | tuple[int, int] = 224,
        augment: Mapping[str, Any] | None = None,
        download: bool = False,
    ) -> None:
        if num_classes not in (10, 100):
            raise ValueError(f"num_classes={num_classes}; legal: 10, 100")
        self.root = Path(root)
        self.num_classes = num_classes
        self.download = download
        super().__init__(split, img_size, augment)

    def open(self) -> tuple[Reader, Sequence[str]]:
        """Open torchvision's reader; it checks the files' hashes."""
        source = CIFAR10 if self.num_classes == 10 else CIFAR100
        try:
            reader = source(str(self.root), self.split == "train", download=self.download)
        except RuntimeError as error:
            how = (
                "set train_dataloader.dataset.download=True and "
                "val_dataloader.dataset.download=True"
            )
            where = self.root / source.base_folder
            raise MissingDataError(f"CIFAR-{self.num_classes}", where, how) from error
        return reader, reader.classes
