"""Augmentation: per image by timm on the CPU, per batch on the device.

Images stay uint8 until the preprocessor, which runs on the device, makes them float.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.model import BaseDataPreprocessor
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from tokensparse.registry import DATA_SAMPLERS, MODELS


def posterize(img: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, keeping no bit, too: black, as Pillow before version 13 made it.

    RandAugment of the published recipes asks for that in about one image of 600.
    """
    if bits_to_keep < 1:
        return Image.new(img.mode, img.size)
    return auto_augment.posterize(img, bits_to_keep)


def _mend(part: Any) -> None:
    """Put :func:`posterize` into timm's policies, however deep its operations lie."""
    if isinstance(part, auto_augment.AugmentOp):
        if part.aug_fn is auto_augment.posterize:
            part.aug_fn = posterize
        return
    inner = part if isinstance(part, (list, tuple)) else ()
    for name in ("transforms", "ops", "policy"):
        inner = getattr(part, name, inner)
    for one in inner:
        _mend(one)


class ImageTransform:
    """timm's ``create_transform``, ending in a uint8 tensor.

    Args:
        img_size: side in pixels, or (height, width).
        training: random crops and augmentation, or resize and centre crop.
        augment: further arguments of ``create_transform`` (``scale``, ``auto_augment``,
            ``crop_pct`` ...).
    """

    def __init__(
        self, img_size: int | tuple[int, int], training: bool, augment: Mapping[str, Any]
    ) -> None:
        given = {"interpolation": "bicubic", **augment}
        self.transform = create_transform(
            img_size, is_training=training, use_prefetcher=True, **given
        )
        _mend(self.transform)

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image -> (3, height, width) uint8."""
        return torch.from_numpy(np.asarray(self.transform(image)))


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """Move a batch to the device, normalise, and (training only) erase and mix there.

    Args:
        mean: per channel, in 0..255.
        std: per channel, in 0..255.
        mixup: arguments of timm's ``Mixup`` (arXiv:1710.09412, arXiv:1905.04899); ``num_classes``
            comes from the head.
        random_erase: arguments of timm's ``RandomErasing`` (arXiv:1708.04896), without ``device``.
        non_blocking: copy to the device without waiting.
    """

    nested_configs: ClassVar[Mapping[str, Any]] = {"mixup": Mixup, "random_erase": RandomErasing}

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        mixup: Mapping[str, Any] | None = None,
        random_erase: Mapping[str, Any] | None = None,
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.mixup = Mixup(**mixup) if mixup else None
        self.random_erase = dict(random_erase) if random_erase else None

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepare a batch.

        Args:
            data: ``inputs`` (B, channels, height, width) uint8; ``labels`` (B,); or mmpretrain's
                ``data_samples``.
            training: erase and mix.

        Returns:
            ``inputs`` (B, channels, height, width) float, and ``data_samples``: the labels, and
            after mixing the soft ``targets`` (B, K); or the objects that were given.

        Raises:
            ValueError: another number of channels than ``mean`` has.
        """
        data = self.cast_data(dict(data))
        inputs = data["inputs"]
        if isinstance(inputs, (list, tuple)):
            inputs = torch.stack(list(inputs))
        if inputs.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"images have {inputs.shape[1]} channels, but mean has {self.mean.shape[1]} "
                "values; set mean "
                "and std of data_preprocessor to that many"
            )
        inputs = (inputs.float() - self.mean) / self.std
        if "data_samples" in data:
            return {"inputs": inputs, "data_samples": data["data_samples"]}
        samples = {k: v for k, v in data.items() if k != "inputs"}
        if training:
            inputs = self._erase(inputs)
            if self.mixup is not None:
                inputs, samples["targets"] = self._mix(inputs, samples["labels"])
        return {"inputs": inputs, "data_samples": samples}

    def _erase(self, inputs: Tensor) -> Tensor:
        if self.random_erase is None:
            return inputs
        return RandomErasing(**self.random_erase, device=str(inputs.device))(inputs)

    def _mix(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(inputs) % 2:
            raise ValueError(
                f"mixup pairs images, but the batch has {len(inputs)}; set an even batch_size and "
                "drop_last=True"
            )
        assert self.mixup is not None
        mixed: tuple[Tensor, Tensor] = self.mixup(inputs, labels)
        return mixed


@DATA_SAMPLERS.register_module()
class RepeatedAugmentSampler(RepeatAugSampler):
    """Each image several times per epoch, differently augmented (arXiv:1901.09335), as DeiT trains.

    An epoch stays as long as the data: with 3 repeats it sees a third of the images.

    Args:
        dataset: the data.
        num_repeats: how often each image comes, over all processes.
        seed: unused; the epoch seeds the order, as in timm.

    Raises:
        ValueError: ``num_repeats`` is no count.
    """

    def __init__(self, dataset: Sized, num_repeats: int = 3, seed: int | None = None) -> None:
        if not isinstance(num_repeats, int) or num_repeats < 1:
            raise ValueError(f"num_repeats={num_repeats!r}; expected a whole number from 1")
        rank, world_size = get_dist_info()
        super().__init__(dataset, world_size, rank, num_repeats=num_repeats, selected_round=0)

    def __iter__(self) -> Iterator[int]:
        """Indices of this process."""
        return (int(i) for i in super().__iter__())
