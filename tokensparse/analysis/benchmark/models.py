"""What a benchmark runs: models of configs, their dense baselines, timm's twins, any callable."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from tokensparse.analysis.baseline import backbone_of, bare_model, dense_of, shape_of
from tokensparse.analysis.count import count
from tokensparse.analysis.executed import executed
from tokensparse.backbones import SwinTransformer, VisionTransformer
from tokensparse.backbones.parts import image_size


class BenchmarkError(ValueError):
    """What cannot be measured; the message names model, batch and dtype, and the remedy."""


@dataclass(frozen=True)
class Subject:
    """One model under the clock.

    Attributes:
        name: for tables; different for each.
        kind: ``config``, ``dense`` (ours, without a plan), ``timm`` or ``call``.
        model: takes (B, 3, rows, columns).
        compiled: by ``torch.compile``.
        baseline: name of the dense subject that it is held against, or None.
        config: path of its config, or None.
        macs: multiply-accumulates of one image, or None where none could be counted.
        params: parameters.
        tokens: image tokens that leave every block; empty where unknown.
        note: what else to know, such as timm's form of attention.
    """

    name: str
    kind: str
    model: nn.Module
    compiled: bool = False
    baseline: str | None = None
    config: str | None = None
    macs: int | None = None
    params: int = 0
    tokens: tuple[int, ...] = ()
    note: str = ""


class Called(nn.Module):
    """Any callable on images, as a module.

    Args:
        function: takes (B, 3, rows, columns).
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, img: Tensor) -> Any:
        """Call it."""
        return self.function(img)


class TimmMaps(nn.Module):
    """A timm model that returns maps of several depths, as backbones do.

    Args:
        model: with ``forward_intermediates``.
        indices: which stages or blocks.
    """

    def __init__(self, model: Any, indices: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.indices = list(indices)

    def forward(self, img: Tensor) -> Any:
        """(B, 3, h, w) -> maps."""
        return self.model.forward_intermediates(img, indices=self.indices, intermediates_only=True)


def line_up(
    configs: Mapping[str, Mapping[str, Any]],
    baseline: tuple[str, Mapping[str, Any]] | None = None,
    calls: Sequence[str] = (),
    shape: Sequence[int] | None = None,
    compiled: bool = False,
    timm: Sequence[str] = ("eager",),
    form: str | None = None,
) -> tuple[list[Subject], tuple[int, int]]:
    """Build everything that one run measures, on the CPU.

    Args:
        configs: content of configs by path.
        baseline: path and content of the config that all are held against; None: each is held
            against its own backbone without a plan.
        calls: ``module:function``, see :func:`called`.
        shape: (rows, columns) in pixels; None takes the configs' own.
        compiled: compile ours and the callables.
        timm: forms of timm's twins of the dense models: ``eager``, ``compiled``.
        form: hold each config against itself with this form of attention instead.

    Returns:
        Subjects, every dense model before what is held against it; and the shape.

    Raises:
        ValueError: no backbone of ours, or sizes that differ.
    """
    size = _common_shape({**configs, **dict([baseline] if baseline else [])}, shape)
    found: dict[str, Subject] = {}
    dense_names: dict[str, str] = {}
    _check_baseline(configs, baseline, form)

    def dense(path: str, cfg: Mapping[str, Any], given: bool) -> str:
        settings = _held_against(backbone_of(cfg, path), form, given)
        head = cfg["model"].get("head") or {}
        key = _sorted({**settings, "head": (head.get("type"), head.get("num_classes"))})
        if key not in dense_names:
            is_itself = given or is_dense(backbone_of(cfg, path))
            name = _name(path, found, "" if is_itself else " (dense)")
            if form is not None:
                is_itself, name = False, f"{Path(path).stem} ({form} attention)"
            model = _built(path, cfg, {**settings, "drop_path_rate": 0.0})
            kind = "dense" if is_dense(settings) else "config"
            found[name] = _ours(name, kind, model, size, compiled, path if is_itself else None)
            twins = [_twin(found[name], settings, size, way == "compiled") for way in timm]
            found.update({twin.name: twin for twin in twins if twin is not None})
            dense_names[key] = name
        return dense_names[key]

    shared = None if baseline is None else dense(*baseline, given=True)
    for path, cfg in sorted(configs.items(), key=lambda item: not is_dense(item[1])):
        against = shared or dense(path, cfg, given=False)
        if any(subject.config == relative(path) for subject in found.values()):
            continue
        backbone = {**backbone_of(cfg, path), "drop_path_rate": 0.0}
        name, model = _name(path, found), _built(path, cfg, backbone)
        found[name] = _with(_ours(name, "config", model, size, compiled, path), baseline=against)
    _add_calls(found, calls, size, compiled)
    return list(found.values()), size


def _add_calls(
    found: dict[str, Subject], calls: Sequence[str], size: tuple[int, int], compiled: bool
) -> None:
    first = next(iter(found), None)
    for spec in calls:
        subject = _with(called(spec, size, compiled), baseline=first)
        first = first or subject.name
        found[subject.name] = subject


def _held_against(settings: dict[str, Any], form: str | None, given: bool) -> dict[str, Any]:
    """Settings of the backbone that one is held against."""
    if form is not None:
        return {**settings, "attention": form}
    return settings if given else dense_of(settings)


def _check_baseline(
    configs: Mapping[str, Any], baseline: tuple[str, Mapping[str, Any]] | None, form: str | None
) -> None:
    if baseline is not None and form is not None:
        raise ValueError("--baseline and --baseline-attention are two answers to one question")
    if baseline is not None and baseline[0] in configs:
        raise ValueError(
            f"--baseline {baseline[0]}: is one of the configs that are held against it"
        )


def _name(path: str, taken: Mapping[str, Subject], more: str = "") -> str:
    """The file's name; its path where another config has that name."""
    name = Path(path).stem + more
    return name if name not in taken else relative(path).removesuffix(".py") + more


def is_dense(cfg: Mapping[str, Any]) -> bool:
    """Whether a config, or its backbone's settings, is one of our dense models."""
    settings = backbone_of(cfg) if "model" in cfg else cfg
    kind = str(settings["type"]).removeprefix("tokensparse.")
    return kind in ("VisionTransformer", "SwinTransformer") and not settings.get("plan")


def _common_shape(
    configs: Mapping[str, Mapping[str, Any]], shape: Sequence[int] | None
) -> tuple[int, int]:
    sizes = {path: shape_of(backbone_of(cfg, path), shape) for path, cfg in configs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the configs have different image sizes, {sizes}; give --shape H W")
    return next(iter(sizes.values()), image_size(224 if shape is None else shape))


def _sorted(settings: Mapping[str, Any]) -> str:
    kept = {k: v for k, v in settings.items() if k != "drop_path_rate"}
    return repr(sorted((str(k), repr(v)) for k, v in kept.items()))


def _with(subject: Subject, **changes: Any) -> Subject:
    return Subject(**{**vars(subject), **changes})


def _built(path: str, cfg: Mapping[str, Any], backbone: Mapping[str, Any]) -> nn.Module:
    """A model with random weights; learned scales are 0.5, so that every part counts."""
    torch.manual_seed(0)
    model = bare_model(cfg, backbone)
    if not isinstance(getattr(model, "backbone", model), (VisionTransformer, SwinTransformer)):
        raise ValueError(f"{path}: backbone {backbone['type']!r} is none of tokensparse")
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    return model


def _ours(
    name: str, kind: str, model: nn.Module, size: tuple[int, int], compiled: bool, path: str | None
) -> Subject:
    cost = count(model, size)
    return Subject(
        name,
        kind,
        model,
        compiled,
        config=None if path is None else relative(path),
        macs=cost.macs,
        params=cost.params,
        tokens=cost.tokens,
    )


def relative(path: str) -> str:
    """``path`` below the working folder where it lies there, else its last parts."""
    absolute = Path(path).resolve()
    if absolute.is_relative_to(Path.cwd()):
        return absolute.relative_to(Path.cwd()).as_posix()
    return "/".join(absolute.parts[-3:])


def _twin(
    dense: Subject,
    settings: Mapping[str, Any],
    size: tuple[int, int],
    compiled: bool,
) -> Subject | None:
    """The twin: timm's model of the same sizes; None where it has none."""
    model = timm_twin(dense.model, settings, size) if is_dense(settings) else None
    if model is None:
        return None
    fused = any(getattr(module, "fused_attn", False) for module in model.modules())
    return Subject(
        f"timm{' compiled' if compiled else ''}: {dense.name}",
        "timm",
        model,
        compiled,
        baseline=dense.name,
        macs=_executed(model, size),
        params=sum(p.numel() for p in model.parameters()),
        note=f"attention: {'SDPA' if fused else 'eager'}, timm's default",
    )


def timm_twin(
    dense: nn.Module, settings: Mapping[str, Any], size: tuple[int, int]
) -> nn.Module | None:
    """Build timm's dense model with the same tensors and its default form of attention.

    Args:
        dense: ours, a classifier or a backbone.
        settings: of our backbone.
        size: (rows, columns) in pixels.

    Returns:
        The model, or None where timm has none of the same sizes (all weights of two and more
        dimensions are compared; a head beyond one linear layer is such a case).
    """
    backbone: Any = getattr(dense, "backbone", dense)
    head = getattr(getattr(dense, "head", None), "fc", None)
    classes = head.out_features if isinstance(head, nn.Linear) else 0
    common = dict(patch_size=backbone.stem.stride, num_classes=classes, drop_path_rate=0.0)
    blocks = [b for stage in backbone.stages for b in stage.blocks.values()]
    try:
        model: Any
        if isinstance(backbone, VisionTransformer):
            own = image_size(settings.get("img_size", 224))
            model = TimmViT(
                img_size=own,
                dynamic_img_size=own != size,
                dynamic_img_pad=any(side % backbone.stem.stride for side in size),
                embed_dim=blocks[0].norm1.normalized_shape[0],
                depth=len(blocks),
                num_heads=blocks[0].attn.num_heads,
                class_token=backbone.cls_token is not None,
                reg_tokens=int(settings.get("num_registers", 0)),
                global_pool="token" if backbone.pool == "token" else "avg",
                **common,
            )
        else:
            firsts = [next(iter(stage.blocks.values())) for stage in backbone.stages]
            model = TimmSwin(
                img_size=size,
                embed_dim=firsts[0].norm1.normalized_shape[0],
                depths=tuple(len(stage.blocks) for stage in backbone.stages),
                num_heads=tuple(block.attn.num_heads for block in firsts),
                window_size=backbone.window_size,
                **common,
            )
    except (ValueError, AssertionError, RuntimeError):
        return None
    if backbone.out_indices is not None:
        model = TimmMaps(model, backbone.out_indices)
    return model if _weights(model) == _weights(dense) else None


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.ndim >= 2)


def _executed(model: nn.Module, size: tuple[int, int]) -> int | None:
    training = model.training
    try:
        return sum(executed(model.eval(), torch.zeros(1, 3, *size)).values()) or None
    except Exception:  # a callable of the user's own, which may want more than an image
        return None
    finally:
        model.train(training)


def called(spec: str, size: tuple[int, int], compiled: bool = False) -> Subject:
    """A user's callable.

    Args:
        spec: ``module:name``; the module is looked for in the working folder, too. A name that
            needs no argument is called once and gives the callable (a model class, a factory); any
            other is called with the images.
        size: (rows, columns) in pixels, to count multiply-accumulates at.
        compiled: compile it.

    Raises:
        ValueError: no such module or name, or nothing that can be called.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ValueError(f"--call {spec}: expected module:function, such as my_models:plain_swin")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--call {spec}: {error}") from None
    if not callable(target):
        raise ValueError(f"--call {spec}: a {type(target).__name__}, which cannot be called")
    if not isinstance(target, nn.Module) and _needs_nothing(target):
        target = target()
        if not callable(target):
            raise ValueError(
                f"--call {spec}: gave a {type(target).__name__}; a function without arguments "
                "must give a callable on images, any other is called with the images"
            )
    model = target if isinstance(target, nn.Module) else Called(target)
    return Subject(
        spec,
        "call",
        model,
        compiled,
        macs=_executed(model, size),
        params=sum(p.numel() for p in model.parameters()),
    )


def _needs_nothing(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in kinds for p in parameters)
