"""Backbone, optional neck, head: the image classifier.

Shapes: B images of S x T pixels, C channels, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from tokensparse.plan import step_losses
from tokensparse.registry import MODELS
from tokensparse.tokens import Trace

Config = Mapping[str, Any]
Labels = Mapping[str, Tensor] | Sequence[Any]


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Any backbone under any head.

    Backbones with ``forward_tokens`` give a trace: every reducer's auxiliary loss and the attention
        penalty are read
    from it. Others (timm, mmpretrain) are called as they are.

    Args:
        backbone: settings of the backbone.
        head: settings of the head; ``in_channels`` is filled in.
        neck: settings of a module between both, taking and giving a tuple of tensors.
        attention_penalty: settings of an ``AttentionPenalty``, or None: then no attention is
            collected.
        data_preprocessor: settings of the preprocessor; mixup's ``num_classes`` is filled in.
        init_cfg: initialisation, see mmengine.

    Raises:
        ValueError: head and backbone do not fit, or the backbone cannot give what the penalty
            reads.
    """

    def __init__(
        self,
        backbone: Config,
        head: Config,
        neck: Config | None = None,
        attention_penalty: Config | None = None,
        data_preprocessor: Config | nn.Module | None = None,
        init_cfg: Config | None = None,
    ) -> None:
        if data_preprocessor is not None and not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = MODELS.build(with_num_classes(data_preprocessor, head))
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(dict(backbone))
        self.neck = None if neck is None else MODELS.build(dict(neck))
        channels = getattr(self.backbone if self.neck is None else self.neck, "num_features", None)
        self.head = MODELS.build(with_in_channels(head, channels))
        self.attention_penalty: nn.Module | None = None
        if attention_penalty is not None:
            self.attention_penalty = MODELS.build(dict(attention_penalty))
            self._check_penalty()

    def _check_penalty(self) -> None:
        name = type(self.backbone).__name__
        if not hasattr(self.backbone, "forward_tokens"):
            raise ValueError(
                "attention_penalty needs a backbone that shows its attention (forward_tokens); "
                f"{name} does "
                "not: take one of tokensparse, or leave the penalty out"
            )
        stage = getattr(self.attention_penalty, "stage", None)
        stages = len(getattr(self.backbone, "stages", ()))
        if stage is not None and stages and not 0 <= stage < stages:
            raise ValueError(
                f"attention_penalty: stage={stage}, but {name} has stages 0..{stages - 1}; None "
                "takes all"
            )

    def extract(
        self, inputs: Tensor, collect: frozenset[str] = frozenset()
    ) -> tuple[Sequence[Tensor], Trace | None]:
        """Features, and the trace where the backbone gives one.

        Args:
            inputs: (B, 3, S, T), normalised.
            collect: what the trace shall hold, ``maps`` and ``attn``.

        Returns:
            The outputs of backbone and neck, usually one (B, C); the trace or None.
        """
        trace = None
        if hasattr(self.backbone, "forward_tokens"):
            outs, trace = self.backbone(inputs, collect=collect, with_trace=True)
        else:
            outs = self.backbone(inputs)
        outs = (outs,) if isinstance(outs, Tensor) else outs
        return (outs if self.neck is None else self.neck(outs)), trace

    def forward(
        self,
        inputs: Tensor,
        data_samples: Labels | None = None,
        mode: Literal["tensor", "loss", "predict"] = "tensor",
    ) -> Any:
        """Logits, losses or predictions.

        Args:
            inputs: (B, 3, S, T), normalised.
            data_samples: dict of ``labels`` (B,), optional ``targets`` (B, K) and
                ``teacher_labels`` (B,); or B objects with ``gt_label`` (and ``gt_score``), as
                mmpretrain makes them.
            mode: what is wanted.

        Returns:
            ``tensor``: logits (B, K). ``loss``: scalars by name; those with "loss" in the name are
                added up, ``acc``
            is the top-1 accuracy of the batch in percent. ``predict``: B dicts of ``scores`` (K,)
            and ``label``, or the given objects with ``set_pred_score`` called.
        """
        if mode == "loss":
            if data_samples is None:
                raise ValueError("mode='loss' needs data_samples with labels")
            return self._loss(inputs, data_samples)
        if mode not in ("tensor", "predict"):
            raise ValueError(f"mode={mode!r}; legal: 'tensor', 'loss', 'predict'")
        feats, _ = self.extract(inputs)
        logits = self.head(feats)
        return logits if mode == "tensor" else predictions(logits, data_samples)

    def _loss(self, inputs: Tensor, data_samples: Labels) -> dict[str, Tensor]:
        feats, trace = self.extract(inputs, self._collected())
        batch = as_batch(data_samples, inputs.device)
        target = batch.get("targets", batch.get("labels"))
        if target is None:
            raise ValueError("data_samples hold neither 'labels' nor 'targets'")
        extra = {k: v for k, v in batch.items() if k == "teacher_labels"}
        losses, logits = self.head.loss(feats, target, **extra)
        if trace is not None:
            losses.update(self._trace_losses(trace))
        hard = target.argmax(1) if target.ndim == 2 else target
        losses["acc"] = (logits.detach().argmax(1) == hard).float().mean() * 100
        return losses

    def _collected(self) -> frozenset[str]:
        """What the trace shall hold: the attention that the penalty reads, and nothing else."""
        if self.attention_penalty is None:
            return frozenset()
        stage = getattr(self.attention_penalty, "stage", None)
        return frozenset({"attn" if stage is None else f"attn:{stage}"})

    def _trace_losses(self, trace: Trace) -> dict[str, Tensor]:
        losses = dict(self.attention_penalty(trace)) if self.attention_penalty is not None else {}
        return {**losses, **step_losses(self.backbone.plan, trace)}


def with_in_channels(head: Config, channels: int | None) -> dict[str, Any]:
    """The head's settings with ``in_channels``; refused where they contradict the features.

    Args:
        head: settings.
        channels: C of the features, or None where the backbone does not say.
    """
    head = dict(head)
    given = head.get("in_channels")
    if given is None and channels is not None:
        head["in_channels"] = channels
    elif None not in (given, channels) and given != channels:
        raise ValueError(
            f"head: in_channels={given}, but the features have {channels} channels; leave "
            "in_channels out "
            f"or set in_channels={channels}"
        )
    return head


def with_num_classes(preprocessor: Config, head: Config) -> dict[str, Any]:
    """The preprocessor's settings with mixup's ``num_classes``; refused if it is not the head's."""
    preprocessor = dict(preprocessor)
    mixup, wanted = preprocessor.get("mixup"), head.get("num_classes")
    if mixup and wanted is not None:
        if mixup.get("num_classes", wanted) != wanted:
            raise ValueError(
                f"mixup: num_classes={mixup['num_classes']}, but the head has {wanted}; leave it "
                "out"
            )
        preprocessor["mixup"] = {**mixup, "num_classes": wanted}
    return preprocessor


def as_batch(data_samples: Labels, device: torch.device) -> Mapping[str, Tensor]:
    """Labels of a batch as tensors, whether they came as a dict or as objects."""
    if isinstance(data_samples, Mapping):
        return data_samples
    batch = {"labels": torch.cat([s.gt_label.view(-1)[:1] for s in data_samples]).to(device)}
    if all("gt_score" in s for s in data_samples):
        batch["targets"] = torch.stack([s.gt_score for s in data_samples]).to(device)
    return batch


def predictions(logits: Tensor, data_samples: Labels | None) -> list[Any]:
    """One result per image; scores are softmax probabilities (K,)."""
    scores = logits.float().softmax(-1)
    if data_samples is not None and not isinstance(data_samples, Mapping):
        for sample, score in zip(data_samples, scores, strict=True):
            sample.set_pred_score(score).set_pred_label(score.argmax(0, keepdim=True))
        return list(data_samples)
    results: list[dict[str, Tensor]] = [{"scores": s} for s in scores]
    if data_samples is not None and "labels" in data_samples:
        for result, label in zip(results, data_samples["labels"], strict=True):
            result["label"] = label
    return results


#: Parts of classifiers, detectors and segmentors that tell the classes of the data apart.
HEADS = ("head", "decode_head", "auxiliary_head", "bbox_head", "mask_head")


def check_labels(model: nn.Module, dataset: Any, where: str) -> None:
    """Refuse a head with another number of classes than the data.

    Args:
        model: a classifier, or one with the heads of mmdet or mmseg; others pass.
        dataset: says its classes in ``metainfo['classes']``; others pass.
        where: name of the data in the message.

    Raises:
        ValueError: the numbers differ.
    """
    model = getattr(model, "module", model)
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    for name, head in model.named_modules() if classes is not None else ():
        parts = [part for part in name.split(".") if not part.isdigit()]
        wanted = getattr(head, "num_classes", None)
        if parts and parts[-1] in HEADS and isinstance(wanted, int) and wanted != len(classes):
            raise ValueError(
                f"{where}: the data have {len(classes)} classes, but model.{name}.num_classes="
                f"{wanted}; set model.{name}.num_classes={len(classes)}"
            )
