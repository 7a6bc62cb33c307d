"""The dense model that a reduced one is compared with: the same sizes, no plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tokensparse.backbones import inner_model
from tokensparse.backbones.parts import image_size
from tokensparse.registry import MODELS

#: Settings that ViT and Swin share with the presets over them; ``attention`` is the form.
_VIT = (
    "arch",
    "img_size",
    "patch_size",
    "in_chans",
    "class_token",
    "distilled",
    "num_registers",
    "attention",
)
_SWIN = (
    "arch",
    "img_size",
    "window_size",
    "window_padding",
    "window_shift",
    "patch_size",
    "in_chans",
    "out_indices",
    "out_norms",
    "attention",
)


def dense_of(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the dense baseline of a backbone.

    Args:
        backbone: settings of one of our backbones, with ``type``.

    Returns:
        Settings of ``VisionTransformer`` or ``SwinTransformer`` without a plan. SparseSwin's is the
        whole Swin of its trunk; STViT-DeiT's has no class token, as STViT-DeiT.

    Raises:
        ValueError: a backbone that is none of ours.
    """
    kind = str(backbone["type"]).removeprefix("tokensparse.")
    given = {key: value for key, value in backbone.items() if key != "type"}
    if kind in ("VisionTransformer", "STViTDeiT"):
        kept = {key: given[key] for key in _VIT if key in given}
        if kind == "STViTDeiT":
            kept = {"arch": "small", **kept, "class_token": False}
        if "out_indices" in given:
            kept["out_indices"] = given["out_indices"]
        return {"type": "tokensparse.VisionTransformer", **kept}
    if kind in ("SwinTransformer", "STViTSwin", "SparseSwin"):
        kept = {key: given[key] for key in _SWIN if key in given}
        if kind == "SparseSwin":
            kept["arch"] = given.get("trunk", "tiny")
        return {"type": "tokensparse.SwinTransformer", **kept}
    raise ValueError(
        f"backbone {backbone['type']!r} is none of tokensparse: it has no dense baseline"
    )


def backbone_of(cfg: Mapping[str, Any], where: str = "the config") -> dict[str, Any]:
    """Settings of a config's backbone, without the file that it starts from.

    Args:
        cfg: content of a config.
        where: its name, for the message.

    Raises:
        ValueError: no ``model.backbone`` with a ``type``.
    """
    model = cfg.get("model")
    if not isinstance(model, Mapping):
        raise ValueError(f"{where} has no model; expected model=dict(backbone=dict(type=...), ...)")
    backbone = inner_model(model).get("backbone")
    if not isinstance(backbone, Mapping) or "type" not in backbone:
        raise ValueError(
            f"{where}: model.backbone={backbone!r}; expected a dict with type, such as "
            "'tokensparse.VisionTransformer'"
        )
    return {key: value for key, value in backbone.items() if key != "init_cfg"}


def bare_model(cfg: Mapping[str, Any], backbone: Mapping[str, Any]) -> nn.Module:
    """The classifier of a config around ``backbone``, or that backbone alone under other heads.

    Args:
        cfg: content of a config; ``model.head`` gives the head of a classifier.
        backbone: settings of the config's backbone, or of its dense baseline.

    Returns:
        The model, without data preprocessor and losses' settings, with random weights.
    """
    if str(cfg["model"].get("type", "")).endswith("ImageClassifier"):
        head = {k: v for k, v in cfg["model"]["head"].items() if k != "in_channels"}
        settings = dict(type="tokensparse.ImageClassifier", backbone=dict(backbone), head=head)
        model: nn.Module = MODELS.build(settings)
    else:
        model = MODELS.build(dict(backbone))
    return model


def shape_of(backbone: Mapping[str, Any], shape: Sequence[int] | None) -> tuple[int, int]:
    """(rows, columns) in pixels: the size asked for, or the backbone's own."""
    return image_size(backbone.get("img_size", 224) if shape is None else shape)
