"""Models built from other people's weights: a file, a state dict, or a timm model."""

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from tokensparse.backbones.parts import image_size
from tokensparse.blocks.stems import grid_of
from tokensparse.checkpoint import (
    SOURCES,
    CheckpointError,
    Source,
    Translated,
    read_state,
    released_name,
    translate,
)
from tokensparse.checkpoint.source import Settings, wrong_ranks
from tokensparse.checkpoint.timm_models import describe_swin, describe_vit
from tokensparse.plan import PlanConfig, closest
from tokensparse.registry import MODELS

State = Mapping[str, Tensor]

#: Settings of a backbone that its tensors decide.
_READ_OFF = (
    "arch",
    "trunk",
    "in_chans",
    "patch_size",
    "window_size",
    "class_token",
    "distilled",
    "num_registers",
)


def load_released(
    source: str,
    weights: str | Path | Mapping[str, Any],
    plan: PlanConfig = None,
    *,
    ema: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Build one of our models from released weights.

    Sizes are read off the tensors. Loading is strict: without a plan, every tensor finds its place.
    A plan may leave blocks or bias tables unused, and new parameters of the plan keep their
    initialisation; a warning names them.

    Args:
        source: whose weights: a key of ``tokensparse.checkpoint.SOURCES``, such as ``timm-vit``
            (DeiT's names, too), ``torchvision-swin`` or ``mmdet-swin``.
        weights: path of a safetensors file or of a file of ``torch.save``, or a state dict. Nothing
            but tensors is ever unpickled.
        plan: token plan, see ``plan/syntax.py``.
        ema: take the averaged weights in ``model_ema`` of a training checkpoint.
        **overrides: ``num_heads`` of a ViT (default: 64 channels a head) and ``sparta_heads`` of
            SparseSwin (16), which no tensor tells; all others are settings of the backbone:
            ``img_size`` (position tables are resized; a table of a square number of positions
            counts as a square map, any other needs its own size here), ``attention``,
            ``window_padding``, ``drop_path_rate``, ``out_indices`` ...

    Returns:
        In eval mode: the classifier, whose forward gives logits; or, for dense sources and with
        ``out_indices``, the backbone, whose forward gives maps.

    Raises:
        CheckpointError: the file is not what ``source`` says, naming the first missing, extra or
            misshapen tensors, or cannot be read safely. It is a ValueError.
        ValueError: an unknown source or override, naming the nearest right one.
        PlanError: a plan that cannot run.
    """
    if source not in SOURCES:
        raise ValueError(
            f"unknown source {source!r}{closest(source, SOURCES)}; known: {sorted(SOURCES)}"
        )
    family = SOURCES[source]
    what = f"{source} weights" if isinstance(weights, Mapping) else f"{weights} as {source}"
    state = read_state(weights, ema)
    try:
        theirs = family.prepare(state)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error
    return _build(what, family, translate(theirs, family.rules), plan, overrides)


def apply_plan(timm_model: nn.Module, plan: PlanConfig = None, **overrides: Any) -> nn.Module:
    """Run a token plan on a timm model, without training.

    Args:
        timm_model: timm's VisionTransformer (DeiT with distillation, too) or SwinTransformer; it
            stays as it is.
        plan: token plan, see ``plan/syntax.py``.
        **overrides: settings of our backbone, as in :func:`load_released`.

    Returns:
        Our classifier in eval mode with the same weights on the same device; without a plan it
        equals timm's logits. Layer scales are multiplied into the layers before them.

    Raises:
        ValueError: another model, or one with an attribute that ours cannot equal, naming it.
        PlanError: a plan that cannot run.
    """
    if isinstance(timm_model, TimmViT):
        name, (theirs, settings) = "timm-vit", describe_vit(timm_model)
    elif isinstance(timm_model, TimmSwin):
        name, (theirs, settings) = "timm-swin", describe_swin(timm_model)
    else:
        raise ValueError(
            f"apply_plan: {type(timm_model).__name__} is neither timm's VisionTransformer nor its "
            "SwinTransformer"
        )
    family = SOURCES[name]
    heads = {key: settings.pop(key) for key in family.keywords if key in settings}
    renamed = translate(theirs, family.rules)
    model = _build(f"this {name} model", family, renamed, plan, {**heads, **overrides}, settings)
    like = next(timm_model.parameters())
    return model.to(device=like.device, dtype=like.dtype)


def _build(
    what: str,
    family: Source,
    renamed: Translated,
    plan: PlanConfig,
    overrides: Mapping[str, Any],
    told: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Check the tensors against the model that was released, then build the one that is wanted."""
    try:
        told = told or {}
        keywords = {**overrides, "img_size": told.get("img_size", overrides.get("img_size"))}
        _check_ranks(what, family, renamed.state)
        released = {**family.settings(renamed.state, keywords), **told}
    except KeyError as error:
        raise CheckpointError(
            _complaint(what, family, [error.args[0]], renamed.extra, [])
        ) from error
    chosen = _chosen(family, released, overrides)
    if plan is not None and family.own_plan:
        raise ValueError(f"plan: {what} bring their own plan; leave it out")
    try:
        with torch.device("meta"):
            twin = _model(family, released, renamed.state)
    except ValueError as error:
        raise CheckpointError(f"{what}: no model has the sizes in there: {error}") from error
    state = _in_model(twin, renamed.state)
    _check(what, family, state, renamed.extra, twin.state_dict())
    settings = {**released, **chosen}
    if family.own_plan and not family.spatial:  # nothing to resize before an image is there
        settings["img_size"] = released["img_size"]
    if not family.own_plan:
        settings["plan"] = plan
    model = _model(family, settings, renamed.state)
    state = _in_model(model, _resized(family, renamed.state, released, settings))
    _fill(what, family, model, state)
    return model.eval()


def _chosen(family: Source, released: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Settings of the caller; what is misspelt or read off the tensors is refused."""
    signature = inspect.signature(MODELS.get(released["type"]).__init__).parameters
    legal = [k for k in signature if k not in (*_READ_OFF, "self", "plan", "init_cfg")]
    for key in overrides:
        if key in _READ_OFF and key in signature:
            raise ValueError(f"{key} is read off the tensors; leave it out")
        if key not in legal and key not in family.keywords:
            known = [*legal, *family.keywords]
            raise ValueError(
                f"unknown setting {key!r}{closest(key, known)}; known: {sorted(known)}"
            )
    if family.dense and overrides.get("out_indices", ()) is None:
        raise ValueError("out_indices=None: these weights hold no classifier; name the maps")
    return {key: value for key, value in overrides.items() if key in legal}


def _model(family: Source, settings: Settings, state: State) -> nn.Module:
    """A classifier, or a backbone where maps are wanted."""
    if settings.get("out_indices") is not None:
        backbone: nn.Module = MODELS.build(dict(settings))
        if family.plain_maps:
            for i in settings["out_indices"]:
                if not any(name.startswith(f"norm{i}.") for name in state):
                    backbone.add_module(f"norm{i}", nn.Identity())
        return backbone
    bias = state.get("head.fc.weight")
    kind = "DistilledHead" if settings.get("distilled") else "LinearHead"
    head = dict(type=f"tokensparse.{kind}", num_classes=1 if bias is None else bias.shape[0])
    model: nn.Module = MODELS.build(
        dict(type="tokensparse.ImageClassifier", backbone=dict(settings), head=head)
    )
    return model


def _in_model(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Names of a classifier: everything but the head lies in ``backbone``."""
    if not hasattr(model, "backbone"):
        return dict(state)
    return {
        name if name.startswith("head.") else f"backbone.{name}": value
        for name, value in state.items()
    }


def _check_ranks(what: str, family: Source, state: State) -> None:
    """Refuse what sizes cannot be read off, before they are."""
    wrong = [
        f"{released_name(name, family.rules)} is {tuple(state[name].shape)}, "
        f"expected {rank} dimensions, none of them empty"
        for name, rank in wrong_ranks(state)
    ]
    if wrong:
        raise CheckpointError(f"{what}: not what the name says. misshapen: " + "; ".join(wrong[:3]))


def _check(
    what: str, family: Source, state: State, extra: list[str], wanted: Mapping[str, Tensor]
) -> None:
    missing = [name for name in wanted if name not in state]
    extra = extra + [
        released_name(_bare(name), family.rules) for name in state if name not in wanted
    ]
    misshapen = [
        (name, tuple(state[name].shape), tuple(value.shape))
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or extra or misshapen:
        raise CheckpointError(_complaint(what, family, missing, extra, misshapen))


def _bare(name: str) -> str:
    return name.removeprefix("backbone.")


def _complaint(
    what: str,
    family: Source,
    missing: list[str],
    extra: list[str],
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> str:
    """One sentence that names the first of each kind, in the names of the file."""

    def first(names: list[str]) -> str:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    parts = []
    if missing:
        parts.append("missing: " + first([released_name(_bare(n), family.rules) for n in missing]))
    if extra:
        parts.append("not expected: " + first(extra))
    if misshapen:
        names = [
            f"{released_name(_bare(n), family.rules)} is {found}, expected {wanted}"
            for n, found, wanted in misshapen
        ]
        parts.append("misshapen: " + first(names))
    return f"{what}: not what the name says. " + "; ".join(parts)


def _resized(family: Source, state: State, released: Settings, settings: Settings) -> State:
    """Tensors of one value per position, at the image size that is wanted."""
    sizes = [image_size(s["img_size"]) for s in (released, settings)]
    if sizes[0] == sizes[1]:
        return state
    changed = dict(state)
    for part in family.spatial:
        stride = part.stride(released)
        old, new = (grid_of(size, stride) for size in sizes)
        changed[part.name] = part.resize(state[part.name], old, new)
    return changed


def _fill(what: str, family: Source, model: nn.Module, state: State) -> None:
    """Copy what has a place; name what keeps its initialisation.

    Raises:
        CheckpointError: settings that leave out a part of a plan that was released.
    """
    own = model.state_dict()
    taken = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(taken, strict=False)
    left = [name for name in state if name not in taken and "plan." in name]
    left += [name for name in state if name not in taken and name.endswith("_bias_table")]
    if family.own_plan and left:
        raise CheckpointError(
            f"{what}: these settings leave no place for {', '.join(map(_bare, left[:3]))}; leave "
            "the settings out that differ from the file"
        )
    fresh = [name for name in own if name not in taken]
    if fresh:
        warnings.warn(
            f"{what}: these parameters are new and keep their initialisation: {', '.join(fresh)}",
            stacklevel=4,
        )
