"""Losses on logits, and penalties on attention.

Shapes: B images, K classes, N tokens.
"""

from collections.abc import Mapping
from typing import Literal

from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from tokensparse.registry import MODELS
from tokensparse.tokens import Trace


@MODELS.register_module()
class CrossEntropy(nn.Module):
    """Cross entropy with hard labels (smoothed, arXiv:1512.00567, Sec. 7) or soft targets (mixup).

    Args:
        label_smoothing: share of the target that is spread over all classes, 0..1. Soft targets are
            taken as they are: mixup has smoothed them already.
        weight: factor on the loss.

    Raises:
        ValueError: ``label_smoothing`` outside 0..1.
    """

    def __init__(self, label_smoothing: float = 0.0, weight: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing}; legal: 0 <= label_smoothing < 1")
        self.weight = weight
        self.hard = LabelSmoothingCrossEntropy(label_smoothing)
        self.soft = SoftTargetCrossEntropy()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the batch, a scalar.

        Args:
            logits: (B, K).
            target: (B,) class indices, or (B, K) probabilities.
        """
        loss = self.soft if target.ndim == 2 else self.hard
        return self.weight * loss(logits.float(), target)


@MODELS.register_module()
class AttentionPenalty(nn.Module):
    """A penalty on softmax attention A, added to the loss (SparseSwin, arXiv:2309.05224, Sec. 3.3).

    ``l1`` adds weight * sum(|A|) and ``l2`` weight * sum(A^2), summed over blocks, images, heads
    and pairs, as published; the sums grow with the batch. What they do:

    - Every row of a softmax is positive and sums to 1. So ``l1`` is the constant B * heads * N per
      block: the loss curve moves up, the gradient is zero, and training is the same as without it.
    - ``l2`` is smallest (1 / N per row) where a row is uniform and largest (1) where it is one-hot.
      Minimising it spreads attention; it does not make it sparse.
    - ``entropy`` is ours: weight * the mean over rows of -sum(A log A), in nats, smallest (0) where
      a row is one-hot. Minimising it sharpens attention. A mean, so the weight does not depend on
      batch and token count.

    Attention is collected only where a penalty is set: without one the fused attention stays in
        use.

    Args:
        kind: which penalty.
        weight: factor; published for l1 and l2: 1e-4 and 1e-5.
        stage: stage of the backbone whose blocks are penalised (SparseSwin's SparTa blocks: 3);
            None takes all.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(
        self, kind: Literal["l1", "l2", "entropy"], weight: float, stage: int | None = None
    ) -> None:
        super().__init__()
        if kind not in ("l1", "l2", "entropy"):
            raise ValueError(f"kind={kind!r}; legal: 'l1', 'l2', 'entropy'")
        self.kind = kind
        self.weight = weight
        self.stage = stage

    def forward(self, trace: Trace) -> Mapping[str, Tensor]:
        """The penalty of one forward.

        Args:
            trace: of a forward that collected ``attn``.

        Returns:
            ``loss_attn_<kind>``, a scalar.

        Raises:
            ValueError: the trace holds no attention of that stage.
        """
        maps = [r.attn for r in trace.blocks if self.stage is None or r.stage == self.stage]
        if not maps:
            found = sorted({r.stage for r in trace.blocks})
            raise ValueError(
                f"AttentionPenalty: no attention of stage {self.stage}; stages with attention: "
                f"{found}; "
                "set stage to one of them, or to None"
            )
        return {f"loss_attn_{self.kind}": self.weight * penalty(self.kind, maps)}


def penalty(kind: str, maps: list[Tensor]) -> Tensor:
    """Sum of |A| or A^2 over everything, or the mean row entropy in nats.

    Args:
        kind: ``l1``, ``l2`` or ``entropy``.
        maps: per block (B, heads, N, N), rows sum to 1.
    """
    maps = [a.float() for a in maps]
    if kind == "l1":
        return sum((a.abs().sum() for a in maps), maps[0].new_zeros(()))
    if kind == "l2":
        return sum((a.square().sum() for a in maps), maps[0].new_zeros(()))
    rows = sum(a.numel() // a.shape[-1] for a in maps)
    total = sum((-(a * a.clamp(min=1e-12).log()).sum() for a in maps), maps[0].new_zeros(()))
    return total / rows
