"""Top-k accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from tokensparse.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of images whose label is among the k best scores, in percent (``accuracy/top1`` ...).

    Args:
        topk: the k's; those beyond the number of classes are left out.
        collect_device: where results of several processes meet.
        prefix: prefix of the names.
    """

    default_prefix = "accuracy"

    def __init__(
        self, topk: Sequence[int] = (1, 5), collect_device: str = "cpu", prefix: str | None = None
    ) -> None:
        super().__init__(collect_device, prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Tensor]]) -> None:
        """Keep the place that the label takes among the scores.

        Args:
            data_batch: unused.
            data_samples: per image ``scores`` (K,) and ``label``.
        """
        scores = torch.stack([s["scores"] for s in data_samples])
        labels = torch.stack([s["label"] for s in data_samples])
        own = scores.gather(1, labels[:, None])
        ties = (scores == own) & (
            torch.arange(scores.shape[1], device=own.device) < labels[:, None]
        )
        rank = (scores > own).sum(1) + ties.sum(1)
        self.results += [(r, scores.shape[1]) for r in rank.tolist()]

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Percent of all images, per k."""
        rank = torch.tensor([r for r, _ in results])
        classes = results[0][1]
        return {
            f"top{k}": (rank < k).double().mean().item() * 100
            for k in self.topk
            if k < classes or k == 1
        }
