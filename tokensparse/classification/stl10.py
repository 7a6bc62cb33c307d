"""STL-10 through torchvision's reader, which checks every file by its published md5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.datasets import STL10

from tokensparse.classification.data import ImageDataset, MissingDataError, Reader, Split
from tokensparse.registry import DATASETS


@DATASETS.register_module()
class STL10Dataset(ImageDataset):
    """STL-10 (Coates et al., AISTATS 2011): 96 x 96 colour images in 10 classes.

    Args:
        root: folder that holds (or gets) torchvision's unpacked ``stl10_binary``.
        split: ``train`` (the 5,000 labelled images) or ``val`` (the 8,000 test images). The
            published protocol trains on ten folds of 1,000; this is the common other one.
        img_size: side in pixels, or (height, width).
        augment: arguments of timm's ``create_transform``.
        download: fetch the data (2.6 GB) where they are missing.

    Raises:
        MissingDataError: files are absent, or their content is not the published one.
    """

    classes = (
        *("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    )

    def __init__(
        self,
        root: str,
        split: Split,
        img_size: int | tuple[int, int] = 96,
        augment: Mapping[str, Any] | None = None,
        download: bool = False,
    ) -> None:
        self.root = Path(root)
        self.download = download
        super().__init__(split, img_size, augment)

    def open(self) -> tuple[Reader, Sequence[str]]:
        """Open torchvision's reader."""
        part = "train" if self.split == "train" else "test"
        try:
            reader = STL10(str(self.root), part, download=self.download)
        except RuntimeError as error:
            how = (
                "set dataset.download=True in train_dataloader and val_dataloader, or unpack "
                f"{STL10.url} into dataset.root"
            )
            where = self.root / STL10.base_folder
            raise MissingDataError("STL-10 (whole and unchanged)", where, how) from error
        return reader, self.classes
