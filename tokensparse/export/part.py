"""What is exported of a config: its classifier, or the backbone under any other head."""

import json
from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

from mmengine.registry import DefaultScope
from torch import Tensor, nn

from tokensparse.backbones.fit import INNER
from tokensparse.backbones.parts import image_size
from tokensparse.registry import MODELS


class ExportError(ValueError):
    """A config or model that cannot be exported; the message is the reason, in one line."""


class Deployable(NamedTuple):
    """The part of a config's model that is exported.

    Attributes:
        model: the classifier, or the backbone of a detector or segmentor; in eval mode.
        size: (rows, columns) in pixels, the backbone's own.
        prefix: of its keys in a checkpoint of the whole model.
        about: what a user of the file must know: ``mean`` and ``std`` where they are set.
    """

    model: nn.Module
    size: tuple[int, int]
    prefix: str
    about: dict[str, str]


def deployable(cfg: Mapping[str, Any]) -> Deployable:
    """Build what can be exported of a config; opens no data and reads no weights.

    Args:
        cfg: with ``model``, and ``default_scope`` where its names need one.

    Returns:
        Our classifier, or the backbone alone under any other head.

    Raises:
        ExportError: the model has no backbone. Whatever a constructor refuses is passed on.
    """
    model = cfg.get("model")
    if not isinstance(model, Mapping):
        raise ExportError(f"model={model!r}; expected settings of a classifier, detector, ...")
    name = model.get("type")
    while "backbone" not in model:
        inner = next((model[k] for k in INNER if isinstance(model.get(k), Mapping)), None)
        if inner is None:
            raise ExportError(f"model: {name} has no backbone, so there is nothing to export")
        model = inner
    backbone = {k: v for k, v in model["backbone"].items() if k != "init_cfg"}
    whole = str(model.get("type")).endswith("ImageClassifier")
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine"):
        default = signature(MODELS.get(backbone["type"])).parameters.get("img_size")
        usual = 224 if default is None else default.default
        built = MODELS.build({**model, "backbone": backbone} if whole else backbone)
    size = image_size(backbone.get("img_size", usual))
    about = _normalisation(model.get("data_preprocessor"), built)
    return Deployable(built.eval(), size, "" if whole else "backbone.", about)


def _normalisation(settings: Any, model: nn.Module) -> dict[str, str]:
    """Mean and std per channel in 0..255: of the classifier's preprocessor, or as a config says."""
    found = {}
    for key in ("mean", "std"):
        value = getattr(getattr(model, "data_preprocessor", None), key, None)
        if isinstance(value, Tensor):
            value = [float(f"{v:.6g}") for v in value.flatten().tolist()]
        elif isinstance(settings, Mapping):
            value = settings.get(key)
        if value is not None:
            found[key] = json.dumps(list(value))
    return found


def load_weights(part: Deployable, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict of the whole model into the part that is exported; strict.

    Args:
        part: what :func:`deployable` gave.
        state: tensors by name; ``module.`` of data-parallel training is cut off.
        where: the file, for the message.

    Raises:
        ExportError: missing, extra or misshapen tensors, naming the first ones.
    """
    given = {k.removeprefix("module."): v for k, v in state.items()}
    if any(k.startswith(part.prefix) for k in given):
        cut = len(part.prefix)
        given = {k[cut:]: v for k, v in given.items() if k.startswith(part.prefix)}
    own = part.model.state_dict()
    wrong = {
        "missing": [k for k in own if k not in given],
        "not in the model": [k for k in given if k not in own],
        "of another shape": [
            f"{k} {tuple(given[k].shape)}, the model's is {tuple(own[k].shape)}"
            for k in own
            if k in given and own[k].shape != given[k].shape
        ],
    }
    parts = [f"{len(v)} {k} ({', '.join(v[:3])})" for k, v in wrong.items() if v]
    if parts:
        raise ExportError(
            f"{where} does not fit {type(part.model).__name__}: tensors {'; '.join(parts)}. Give "
            "the checkpoint of a training with this config"
        )
    part.model.load_state_dict(given)
