"""Whether the neck and heads of an mm model fit a backbone of ours; asked before it is built.

mm libraries build backbone, neck and heads apart, so a wrong ``in_channels`` shows only in the
first forward, as a failed assertion inside a neck. Here it is refused in the config.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from tokensparse.backbones.base import Backbone
from tokensparse.registry import MODELS

#: Parts that may read the backbone's maps where there is no neck.
HEADS = ("decode_head", "auxiliary_head", "panoptic_head", "bbox_head", "rpn_head", "mask_head")
#: Keys under which a wrapper (TokenModel, test-time augmentation, semi-supervision) holds a model.
INNER = ("model", "module", "detector")


def inner_model(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the model that holds the backbone, inside whatever wraps it.

    Args:
        model: settings of a model, in a TokenModel or other wrappers, or in none.

    Returns:
        Those with ``backbone``; ``model`` where none has one.
    """
    inner: Any = model
    while isinstance(inner, Mapping) and "backbone" not in inner:
        inner = next((inner[key] for key in INNER if isinstance(inner.get(key), Mapping)), None)
    return model if inner is None else inner


def check_fit(model: Mapping[str, Any]) -> None:
    """Refuse a detector or segmentor whose first part after our backbone does not fit it.

    Args:
        model: settings of an mm model, wrapped or not. Backbones of others are not looked at, nor
            parts without ``in_channels``.

    Raises:
        ValueError: a backbone without ``out_indices`` under a neck or head, wrong channels, an
            ``in_index`` that no map has, or mmseg's ``pretrained``; naming the part, its value and
            the right one. Whatever the backbone refuses is passed on.
    """
    for key in INNER:
        if isinstance(model.get(key), Mapping):
            check_fit(model[key])
    settings = model.get("backbone")
    if not isinstance(settings, Mapping) or not _is_ours(settings.get("type")):
        return
    if model.get("pretrained") is not None:
        raise ValueError(
            f"model.pretrained={model['pretrained']!r} is handed to the backbone by mmseg; set "
            "model.pretrained=None and backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    parts = list(_readers(model))
    if not parts:
        return
    backbone = _on_meta(settings)
    name = type(backbone).__name__
    channels = backbone.out_channels
    if channels is None:
        raise ValueError(
            f"model.backbone: {name} without out_indices is a classifier's and returns no maps, "
            f"but model.{parts[0][0]} needs them; {_remedy(settings, _usual(backbone))}"
        )
    for part, value in parts:
        _check_part(part, value, name, list(channels))


def _check_part(part: str, value: Mapping[str, Any], name: str, channels: list[int]) -> None:
    given = value["in_channels"]
    several = isinstance(given, Sequence)
    index = value.get("in_index", None if several else -1)
    chosen = [index] if isinstance(index, int) else index
    wanted = channels
    if chosen is not None:
        wrong = [i for i in chosen if not -len(channels) <= i < len(channels)]
        if wrong:
            raise ValueError(
                f"model.{part}.in_index={index!r}, but {name} returns {len(channels)} maps "
                f"(0..{len(channels) - 1}); name some of these, or more in backbone.out_indices"
            )
        wanted = [channels[i] for i in chosen]
    if (list(given) if several else [given]) != wanted:
        right = wanted if several else wanted[0]
        raise ValueError(
            f"model.{part}.in_channels={given!r}, but {name} returns maps of {channels} channels; "
            f"set in_channels={right!r}"
        )


def _readers(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, settings) of the parts that read the backbone's maps and say their channels."""
    neck = model.get("neck")
    if neck is not None:
        first = neck if isinstance(neck, Mapping) else neck[0]
        found = [("neck" if first is neck else "neck[0]", first)]
    else:
        found = []
        for head in HEADS:
            value = model.get(head)
            if isinstance(value, Mapping):
                found.append((head, value))
            elif isinstance(value, Sequence):
                found += [(f"{head}[{i}]", one) for i, one in enumerate(value)]
    for path, value in found:
        if isinstance(value, Mapping) and value.get("in_channels") is not None:
            yield path, value


def _is_ours(kind: Any) -> bool:
    """A class of ours, or a name in our scope."""
    if isinstance(kind, str):
        kind = MODELS.get(kind) if kind.startswith("tokensparse.") else None
    return inspect.isclass(kind) and issubclass(kind, Backbone)


def _on_meta(settings: Mapping[str, Any]) -> Backbone:
    with torch.device("meta"):
        backbone = MODELS.build({**settings, "init_cfg": None})
    assert isinstance(backbone, Backbone)
    return backbone


def _remedy(settings: Mapping[str, Any], out_indices: tuple[int, ...]) -> str:
    """Maps of the same backbone, or why it has none."""
    try:
        _on_meta({**settings, "out_indices": out_indices})
    except ValueError as error:
        return str(error)
    return f"set out_indices={out_indices}"


def _usual(backbone: Backbone) -> tuple[int, ...]:
    """What ``out_indices`` usually is: the stages of a Swin, the last block of a ViT."""
    stages = len(backbone.stages)
    return tuple(range(stages)) if stages > 1 else (backbone.plan.stages[0].depth - 1,)
