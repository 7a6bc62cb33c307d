"""What a trained detector or segmentor is worth: metrics, and how well masks follow outlines."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from tokensparse.dense.boundary import boundary, boundary_iou, mask_iou

#: Pixels of the bands; 1 % of the diagonal of 192 x 192, since strokes of digits are thin.
BAND = 2


class InstanceBoundaries:
    """Boundary quality of instance masks, collected image by image.

    A true object is found where a prediction of its class and at least ``score`` overlaps its mask
    by at least half; the best one counts.

    Args:
        score: least confidence of a prediction.
    """

    def __init__(self, score: float = 0.3) -> None:
        self.score = score
        self.ious: list[float] = []
        self.bands: list[float] = []
        self.objects = 0

    def add(self, sample: Any) -> None:
        """Count one image: mmdet's sample with ``gt_instances`` and ``pred_instances``."""
        found = sample.pred_instances
        sure = found.scores >= self.score
        labels, masks = found.labels[sure].cpu().numpy(), found.masks[sure].cpu().numpy()
        truth = sample.gt_instances
        true_masks = truth.masks.to_ndarray().astype(bool)
        for label, true in zip(truth.labels.cpu().numpy(), true_masks, strict=True):
            self.objects += 1
            candidates = [mask for mask in masks[labels == label] if mask_iou(mask, true) >= 0.5]
            if candidates:
                best = max(candidates, key=lambda mask: mask_iou(mask, true))
                self.ious.append(mask_iou(best, true))
                self.bands.append(boundary_iou(best, true, BAND))

    def result(self) -> dict[str, float]:
        """Share of objects found, and the means over those: mask IoU, boundary IoU."""
        return dict(
            found=len(self.ious) / max(self.objects, 1),
            mask_iou=float(np.mean(self.ious)) if self.ious else 0.0,
            boundary_iou=float(np.mean(self.bands)) if self.bands else 0.0,
        )


class SemanticBoundaries:
    """Boundary IoU of semantic maps: per class, the bands of all images together.

    Args:
        num_classes: classes; 0 is background and does not count.
    """

    def __init__(self, num_classes: int) -> None:
        self.shared = np.zeros(num_classes, dtype=np.int64)
        self.union = np.zeros(num_classes, dtype=np.int64)

    def add(self, sample: Any) -> None:
        """Count one image: mmseg's sample with ``gt_sem_seg`` and ``pred_sem_seg``."""
        found = sample.pred_sem_seg.data[0].cpu().numpy()
        true = sample.gt_sem_seg.data[0].cpu().numpy()
        for label in range(1, len(self.shared)):
            a, b = boundary(found == label, BAND), boundary(true == label, BAND)
            self.shared[label] += (a & b).sum()
            self.union[label] += (a | b).sum()

    def result(self) -> dict[str, float]:
        """Mean over the classes that occur."""
        occurs = self.union > 0
        return dict(boundary_iou=float((self.shared[occurs] / self.union[occurs]).mean()))


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Any], evaluator: Any, boundaries: Any
) -> dict[str, float]:
    """Run a model of mmdet or mmseg over a data loader once.

    Args:
        model: with ``test_step``; it is put into eval mode.
        batches: of the data loader.
        evaluator: mmengine's, with ``dataset_meta`` set.
        boundaries: :class:`InstanceBoundaries` or :class:`SemanticBoundaries`.

    Returns:
        The evaluator's metrics without their prefix, and those of ``boundaries``.
    """
    model.eval()
    images = 0
    for batch in batches:
        samples = model.test_step(batch)
        images += len(samples)
        for sample in samples:
            boundaries.add(sample)
        evaluator.process(data_samples=samples, data_batch=batch)
    metrics = {k.split("/")[-1]: float(v) for k, v in evaluator.evaluate(images).items()}
    return {**metrics, **boundaries.result()}
