"""From pooled features to logits.

Shapes: B images, C channels, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from tokensparse.registry import MODELS


@MODELS.register_module()
class LinearHead(BaseModule):
    """One linear layer on the pooled features.

    Args:
        num_classes: K.
        in_channels: C; the classifier fills it in from the backbone.
        loss: settings of the loss, default plain cross entropy.
        init_cfg: initialisation; default truncated normal, std 0.02.

    Raises:
        ValueError: ``num_classes`` or ``in_channels`` is no positive number.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int | None = None,
        loss: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            init_cfg or {"type": "TruncNormal", "layer": "Linear", "std": 0.02, "bias": 0.0}
        )
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes={num_classes!r}; set the number of classes of the data")
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(
                f"in_channels={in_channels!r}; leave it out inside an ImageClassifier, else set "
                "the "
                "backbone's num_features"
            )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.fc = nn.Linear(in_channels, num_classes)
        self.criterion = MODELS.build(dict(loss or {"type": "tokensparse.CrossEntropy"}))

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Logits (B, K) of the last output: features (B, C), or a map (B, C, H, W), averaged."""
        return self.fc(pooled(feats[-1]))

    def loss(self, feats: Sequence[Tensor], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses by name, and the logits.

        Args:
            feats: as in ``forward``.
            target: (B,) class indices, or (B, K) probabilities.
        """
        logits = self(feats)
        return {"loss": self.criterion(logits, target)}, logits


@MODELS.register_module()
class DistilledHead(LinearHead):
    """DeiT's classifiers of class and distillation token (arXiv:2012.12877, Sec. 4).

    Logits are the mean of both. While training, both learn the labels, each with half the weight:
        the setting
    without a teacher. A teacher is data: put its labels into the batch as ``teacher_labels`` (B,)
        and the second
    classifier learns those (hard distillation, Eq. 3).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int | None = None,
        loss: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, loss, init_cfg)
        self.fc_dist = nn.Linear(self.in_channels, num_classes)

    def _both(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if len(feats) != 2:
            raise ValueError(
                f"DistilledHead needs class and distillation features, got {len(feats)} "
                "output(s); set "
                "distilled=True on the backbone, or take LinearHead"
            )
        return self.fc(pooled(feats[0])), self.fc_dist(pooled(feats[1]))

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Logits (B, K): the mean of both classifiers, of features (B, C) and (B, C)."""
        by_class, by_dist = self._both(feats)
        return (by_class + by_dist) / 2

    def loss(
        self, feats: Sequence[Tensor], target: Tensor, teacher_labels: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses by name, and the mean logits.

        Args:
            feats: class features (B, C) and distillation features (B, C).
            target: (B,) class indices, or (B, K) probabilities.
            teacher_labels: (B,) what the distillation classifier learns; default ``target``.
        """
        by_class, by_dist = self._both(feats)
        taught = target if teacher_labels is None else teacher_labels
        losses = {
            "loss": 0.5 * self.criterion(by_class, target),
            "loss_dist": 0.5 * self.criterion(by_dist, taught),
        }
        return losses, (by_class + by_dist) / 2


def pooled(x: Tensor) -> Tensor:
    """(B, C) as it is; the mean over space of a map (B, C, H, W)."""
    return x.mean((2, 3)) if x.ndim == 4 else x
