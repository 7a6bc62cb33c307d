"""Strict configs: a misspelt or unknown key, at any depth, stops the run before data open.

So does a neck or head that does not fit a backbone of ours. Legal keys are read off the
constructors that the registries name, so there is no list to keep.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from mmengine.utils import import_modules_from_strings
from torch.utils.data import DataLoader

from tokensparse.backbones import check_fit
from tokensparse.config_names import (
    ALL_REGISTRIES,
    ENV_KEYS,
    FORWARDED,
    FREE_VARIABLES,
    MM_SCOPES,
    REGISTRY_OF,
    TAKEN_OFF,
    TOP_LEVEL_EXTRA,
)
from tokensparse.plan.syntax import StepSettings, closest


class ConfigError(ValueError):
    """A key or type that means nothing; the message names it and the nearest right one."""


def check_config(cfg: Config | Mapping[str, Any]) -> None:
    """Refuse what no constructor takes. Opens no data; of models only our backbone is built, empty.

    Args:
        cfg: a run's config, ``--cfg-options`` merged in. Top-level names with a leading underscore
            are free variables.

    Raises:
        ConfigError: an unknown key or type, naming the path to it and the nearest right one.
        ValueError: a neck or head that does not fit our backbone, see ``backbones.check_fit``.
    """
    imports = cfg.get("custom_imports")
    if imports:
        import_modules_from_strings(**imports)
    scope = cfg.get("default_scope") or "mmengine"
    if scope in MM_SCOPES:  # what their configs name without a scope is theirs
        import_module(f"{scope}.utils").register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):
        _check_all(cfg, scope)


def _check_all(cfg: Config | Mapping[str, Any], scope: str) -> None:
    names = [k for k in cfg if not k.startswith("_")]
    legal = arguments(Runner) - {"cfg"} | TOP_LEVEL_EXTRA
    if scope in MM_SCOPES:  # these have variables at the top level
        near = {k for k in names if get_close_matches(k, legal, 1, 0.75)} - FREE_VARIABLES
        names = [k for k in names if k in near | legal]
    refuse_unknown(names, legal, "config")
    for key in names:
        _check(cfg[key], key, key, ())
    if isinstance(cfg.get("model"), Mapping):
        check_fit(cfg["model"])


def arguments(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names of the keyword arguments of a function or constructor; None where any name is taken.

    A constructor's ``**kwargs`` are followed to its parents, in the order of inheritance.
    """
    if not inspect.isclass(function):
        names, is_open = _named(function)
        return None if is_open else names
    if function in FORWARDED:
        names, _ = _named(vars(function)["__init__"])
        return names | arguments(FORWARDED[function])
    found: frozenset[str] = frozenset()
    is_open = False
    for cls in function.__mro__:
        if cls in (object, torch.nn.Module):
            break
        if "__init__" in vars(cls):
            names, is_open = _named(vars(cls)["__init__"])
            found |= names
            if not is_open:
                break
    return None if is_open else found


def _named(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Argument names without self, and whether ``**kwargs`` takes more."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(names - {"self"}), any(p.kind == p.VAR_KEYWORD for p in parameters)


def refuse_unknown(given: Iterable[str], legal: Iterable[str] | None, where: str) -> None:
    """Raise on the first key that is not legal.

    Args:
        given: keys.
        legal: right keys; None takes any.
        where: path of the dict.
    """
    if legal is None:
        return
    legal = sorted(legal)
    for key in given:
        if key not in legal:
            raise ConfigError(
                f"{where}: unknown key {key!r}{closest(str(key), legal)}; "
                f"legal keys: {', '.join(legal)}"
            )


def _check(value: Any, key: str, where: str, around: tuple[Registry, ...]) -> None:
    """Check one value: ``key`` says what it is, ``around`` whence the dicts around it came."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            _check(item, key, f"{where}[{i}]", around)
        return
    if not isinstance(value, Mapping):
        if key in ("train_dataloader", "optim_wrapper", "model") and value is not None:
            raise ConfigError(f"{where}: expected a dict, got {value!r}")
        return
    special = SPECIAL.get(key)
    if special is not None:
        special(value, key, where, around)
    elif "type" in value:
        _check_typed(value, key, where, around)
    else:
        own = REGISTRY_OF.get(key)
        for name, item in value.items():
            inner = name if name in REGISTRY_OF or name in SPECIAL else key
            if key in ("default_hooks", "custom_hooks") and isinstance(item, Mapping):
                _require_type(item, f"{where}.{name}")
            _check(item, inner, f"{where}.{name}", around if own is None else (own, *around))


def _require_type(value: Mapping[str, Any], where: str) -> None:
    if "type" not in value:
        raise ConfigError(f"{where}: has no 'type'; is {where.rsplit('.', 1)[-1]!r} misspelt?")


def _check_typed(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """A dict with ``type``: keys against its constructor, values by recursion."""
    target, source = _resolve(value["type"], key, where, around)
    legal = arguments(target)
    if legal is not None:
        legal |= TAKEN_OFF.get(key, frozenset()) | {"type", "_scope_"}
        refuse_unknown(value, legal, f"{where} ({_name(value['type'])})")
    nested = getattr(target, "nested_configs", {})
    for name, item in value.items():
        path = f"{where}.{name}"
        if name in nested and isinstance(item, Mapping):
            refuse_unknown(item, arguments(nested[name]), path)
        elif name != "type":
            _check(item, name, path, (source, *around))


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def _resolve(
    kind: Any, key: str, where: str, around: tuple[Registry, ...]
) -> tuple[Callable[..., Any], Registry]:
    """The constructor that a ``type`` names, and the registry that knows it."""
    own = REGISTRY_OF.get(key)
    nearest = (own,) if own is not None else around
    if not isinstance(kind, str):
        return kind, (nearest or ALL_REGISTRIES)[0]
    for registry in (*nearest, *around, *ALL_REGISTRIES):
        child = registry.children.get(_scope())  # mmdet's, in a config of mmdet
        found = (None if child is None else child.get(kind)) or registry.get(kind)
        if found is not None:
            return found, registry
    names = sorted(set().union(*(_known(r) for r in nearest or ALL_REGISTRIES)))
    hint = closest(kind, names) or closest(f"tokensparse.{kind}", names)
    raise ConfigError(f"{where}: unknown type {kind!r}{hint}")


def _scope() -> str:
    current = DefaultScope.get_current_instance()
    return "" if current is None else str(current.scope_name)


def _known(registry: Registry) -> set[str]:
    """Names in a registry, and those of its children with their scope."""
    names = set(registry.module_dict)
    for scope, child in registry.children.items():
        names |= {f"{scope}.{name}" for name in child.module_dict}
    return names


def _check_plan(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """A plan's dict, or one step of its list."""
    if where.endswith("]"):
        refuse_unknown(value, [f.name for f in fields(StepSettings)], where)
    else:
        refuse_unknown(value, ("every", "stages", "steps", "restore"), where)
        for i, step in enumerate(value.get("steps", ())):
            _check_plan(step, "plan", f"{where}.steps[{i}]", around)
    for name in ("reduce", "recover", "restore"):
        if value.get(name) is not None:
            _require_type(value[name], f"{where}.{name}")
            _check_typed(value[name], name, f"{where}.{name}", around)
    if "every" in value:
        _check_every(value["every"], f"{where}.every")


def _check_every(value: Mapping[str, Any], where: str) -> None:
    """``every``: what the schedule takes off is legal, what it passes on must be an argument."""
    _require_type(value, where)
    target, _ = _resolve(value["type"], "every", where, ())
    lengths = [len(v) for v in value.values() if isinstance(v, (list, tuple))]
    try:
        schedule = target.schedule(dict(value), lengths[0] if lengths else 12)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    for settings in schedule:
        legal = arguments(target)
        if settings is not None and legal is not None:
            taken = set(value) - set(settings)
            refuse_unknown(settings, legal | taken | {"type"}, f"{where} ({value['type']})")


def _check_dataloader(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    legal = arguments(DataLoader) | {"num_batch_per_epoch"}
    refuse_unknown(value, legal, where)
    for name, item in value.items():
        _check(item, name, f"{where}.{name}", ())


def _check_loop(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """Loops; without ``type``, ``by_epoch`` says which. A model's own ``train_cfg`` is walked."""
    if around or "type" in value:
        for name, item in value.items():
            _check(item, name if name == "nms" else "", f"{where}.{name}", around)
        return
    by_epoch = value.get("by_epoch", True)
    loop = {"val_cfg": ValLoop, "test_cfg": TestLoop}.get(
        key, EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    )
    extra = {"by_epoch"} if key == "train_cfg" else set()
    refuse_unknown(value, arguments(loop) - {"runner", "dataloader", "evaluator"} | extra, where)


def _check_env(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    refuse_unknown(value, ENV_KEYS, where)


def _check_randomness(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    refuse_unknown(value, arguments(Runner.set_randomness), where)


def _check_paramwise(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    multipliers = (
        "bias_lr",
        "bias_decay",
        "norm_decay",
        "dwconv_decay",
        "dcn_offset_lr",
        "flat_decay",
    )
    legal = {"custom_keys", "bypass_duplicate", "num_layers", "decay_rate", "decay_type"}
    refuse_unknown(value, legal | {f"{m}_mult" for m in multipliers}, where)
    for name, item in value.get("custom_keys", {}).items():
        refuse_unknown(item, ("lr_mult", "decay_mult"), f"{where}.custom_keys.{name}")


def _check_optim_wrapper(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    _check_typed({"type": "OptimWrapper", **value}, key, where, around)


def _check_optimizer(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    _require_type(value, where)
    _check_typed(value, key, where, around)


def _check_clip(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    clip = torch.nn.utils.clip_grad_value_ if value.get("type") == "value" else None
    legal = arguments(clip or torch.nn.utils.clip_grad_norm_)
    refuse_unknown(value, legal - {"parameters"} | {"type"}, where)


def _check_mmcv_op(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """``roi_layer`` and ``nms``: their type is a name in ``mmcv.ops``."""
    ops = import_module("mmcv.ops")
    kind = value.get("type", "nms")
    if isinstance(kind, str) and not hasattr(ops, kind):
        raise ConfigError(f"{where}: unknown type {kind!r}{closest(kind, dir(ops))} in mmcv.ops")
    legal = arguments(getattr(ops, kind) if isinstance(kind, str) else kind)
    if legal is not None:
        extra = (
            {"type", "class_agnostic", "split_thr", "max_num", "iou_thr"}
            if key == "nms"
            else {"type"}
        )
        refuse_unknown(value, legal | extra, where)


SPECIAL: dict[str, Callable[..., None]] = {
    "plan": _check_plan,
    "train_dataloader": _check_dataloader,
    "val_dataloader": _check_dataloader,
    "test_dataloader": _check_dataloader,
    "train_cfg": _check_loop,
    "val_cfg": _check_loop,
    "test_cfg": _check_loop,
    "env_cfg": _check_env,
    "randomness": _check_randomness,
    "paramwise_cfg": _check_paramwise,
    "optim_wrapper": _check_optim_wrapper,
    "optimizer": _check_optimizer,
    "clip_grad": _check_clip,
    "roi_layer": _check_mmcv_op,
    "nms": _check_mmcv_op,
}
