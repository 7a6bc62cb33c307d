"""Strict configs: a misspelt or unknown key, at any depth, stops the run before data open.

So does a neck or head that does not fit a backbone of ours. Legal keys are read off the
constructors that the registries name; what no constructor names is listed in ``config_names``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from mmengine.utils import import_modules_from_strings
from torch.utils.data import DataLoader

from tokensparse.backbones import check_fit
from tokensparse.config_names import (
    ALL_REGISTRIES,
    DEFAULT_HOOKS,
    FOREIGN_TRANSFORMS,
    FREE_VARIABLES,
    MM_SCOPES,
    MODEL_CFG,
    OWN_TYPES,
    PARAMETERS,
    PARAMWISE,
    REGISTRY_OF,
    TAKEN_OFF,
    TOP_LEVEL_EXTRA,
    TYPED,
    UNTYPED,
    arguments,
    found_in,
    known_arguments,
    named_types,
    names_in,
    own_variables,
    without_weights,
)
from tokensparse.plan.syntax import StepSettings, closest
from tokensparse.registry import MODELS

#: Names that the config at hand declares legal.
_extra: ContextVar[frozenset[str]] = ContextVar("extra", default=frozenset())


class ConfigError(ValueError):
    """A key or type that means nothing; the message names it and the nearest right one."""


def check_config(cfg: Config | Mapping[str, Any]) -> None:
    """Refuse what no constructor takes. Opens no data; of models only our backbone is built, empty.

    Args:
        cfg: a run's config, ``--cfg-options`` merged in. Top-level names with a leading underscore
            are free variables; ``_extra_keys`` lists names that this check is to let pass at
            any depth: those that only a model or data set of others reads.

    Raises:
        ConfigError: an unknown key or type, naming the path to it and the nearest right one.
        ValueError: a neck or head that does not fit our backbone, see ``backbones.check_fit``.
    """
    _refuse_near(cfg, ("default_scope", "custom_imports"), "config")
    imports = cfg.get("custom_imports")
    if imports:
        refuse_unknown(imports, UNTYPED["custom_imports"], "custom_imports")
        import_modules_from_strings(**imports)
    scope = cfg.get("default_scope") or "mmengine"
    if scope in MM_SCOPES:  # what their configs name without a scope is theirs
        import_module(f"{scope}.utils").register_all_modules(init_default_scope=False)
    token = _extra.set(frozenset(cfg.get("_extra_keys") or ()))
    try:
        with DefaultScope.overwrite_default_scope(scope):
            _check_all(cfg, scope)
    finally:
        _extra.reset(token)


def _check_all(cfg: Config | Mapping[str, Any], scope: str) -> None:
    names = [k for k in cfg if not str(k).startswith("_")]
    legal = arguments(Runner) - {"cfg"} | TOP_LEVEL_EXTRA
    known = legal | FREE_VARIABLES if scope in MM_SCOPES else legal
    read = getattr(cfg, "filename", None) is not None
    own = own_variables(cfg) if read and scope in MM_SCOPES else set()
    names = [k for k in names if k in legal or k not in own]
    for key in names:
        unread = read and key not in legal
        refuse_unknown([key], known - {key} if unread else known, "config", note=_VARIABLES)
    for key in names:
        _check(cfg[key], "pipeline" if key.endswith("pipeline") else key, key, ())
    if isinstance(cfg.get("model"), Mapping):
        _check_custom_keys(cfg)
        check_fit(cfg["model"])


_VARIABLES = (
    "; a variable of the config itself begins with an underscore, or is named in _extra_keys"
)


def _check_custom_keys(cfg: Config | Mapping[str, Any]) -> None:
    """Refuse a ``paramwise_cfg.custom_keys`` that no parameter's name holds."""
    paramwise = (cfg.get("optim_wrapper") or {}).get("paramwise_cfg") or {}
    given = [k for k in paramwise.get("custom_keys", {}) if k not in PARAMETERS]
    if not given:
        return
    try:
        with torch.device("meta"):
            model = MODELS.build(ConfigDict(without_weights(cfg["model"])))
    except RuntimeError:  # some models of others compute while they are built
        return
    names = [name for name, _ in model.named_parameters()]
    known = PARAMETERS | {part for name in names for part in name.split(".")}
    for key in given:
        if not any(key in name for name in names):
            raise ConfigError(
                f"optim_wrapper.paramwise_cfg.custom_keys: unknown key {key!r}"
                f"{closest(key, known)}: no parameter's name holds it"
            )


def refuse_unknown(
    given: Iterable[str], legal: Iterable[str] | None, where: str, note: str = ""
) -> None:
    """Raise on the first key that is not legal.

    Args:
        given: keys.
        legal: right keys; None takes any.
        where: path of the dict.
        note: what else to say.
    """
    if legal is None:
        return
    legal = sorted(set(legal))
    for key in given:
        if key not in legal and key not in _extra.get():
            raise ConfigError(
                f"{where}: unknown key {key!r}{closest(str(key), legal)}; "
                f"legal keys: {', '.join(legal)}{note}"
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
        _check_untyped(value, key, where)
        own = REGISTRY_OF.get(key)
        for name, item in value.items():
            known = name in REGISTRY_OF or name in SPECIAL or name in UNTYPED
            inner = key if own is not None and not known else name
            if key in ("default_hooks", "custom_hooks") and isinstance(item, Mapping):
                _require_type(item, f"{where}.{name}")
            _check(item, inner, f"{where}.{name}", around if own is None else (own, *around))


def _check_untyped(value: Mapping[str, Any], key: str, where: str) -> None:
    """A dict without ``type``: was one meant, and are its keys known?"""
    words = [k for k in value if isinstance(k, str)]
    _refuse_near(words, ("type",), where)
    if key in TYPED and where.split(".")[-1].split("[")[0] in (key, *FREE_VARIABLES):
        _require_type(value, where)
    if key == "default_hooks":
        _refuse_near(words, DEFAULT_HOOKS, where)
    if key in UNTYPED:
        refuse_unknown(words, UNTYPED[key], where)


def _refuse_near(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raise on a key that is almost a known one."""
    for key in given:
        near = get_close_matches(key.lower(), known, 1, 0.7)
        if near and key not in (*known, *_extra.get()):
            raise ConfigError(f"{where}: unknown key {key!r} (did you mean {near[0]!r}?)")


def _require_type(value: Mapping[str, Any], where: str) -> None:
    if "type" not in value:
        _refuse_near([k for k in value if isinstance(k, str)], ("type",), where)
        raise ConfigError(f"{where}: has no 'type'; is {where.rsplit('.', 1)[-1]!r} misspelt?")


def _check_typed(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """A dict with ``type``: keys against its constructor, values by recursion."""
    if key in OWN_TYPES:
        return
    target, source = _resolve(value["type"], key, where, around)
    legal, is_open = known_arguments(target)
    if is_open:
        for kind in named_types(target, value):
            found = found_in(kind, (source, *around, *ALL_REGISTRIES))
            legal |= frozenset() if found is None else arguments(found[0]) or frozenset()
    if legal or not is_open:
        legal |= _taken_off(key) | {"type", "_scope_"}
        refuse_unknown(value, legal, f"{where} ({_name(value['type'])})")
    nested = getattr(target, "nested_configs", {})
    for name, item in value.items():
        path = f"{where}.{name}"
        if name in nested and isinstance(item, Mapping):
            refuse_unknown(item, arguments(nested[name]), path)
        elif name != "type" and not (name == "transforms" and value["type"] in FOREIGN_TRANSFORMS):
            _check(item, name, path, (source, *around))


def _taken_off(key: str) -> frozenset[str]:
    return TAKEN_OFF.get("norm_cfg" if key.endswith("norm_cfg") else key, frozenset())


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
    found = found_in(kind, (*nearest, *around, *ALL_REGISTRIES))
    if found is not None:
        return found
    names = sorted(set().union(*(names_in(r) for r in nearest or ALL_REGISTRIES)))
    hint = closest(kind, names) or closest(f"tokensparse.{kind}", names)
    raise ConfigError(f"{where}: unknown type {kind!r}{hint}")


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
    if around:
        _check_model_cfg(value, where, around)
        return
    by_epoch = value.get("by_epoch", True)
    loop = {"val_cfg": ValLoop, "test_cfg": TestLoop}.get(
        key, EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    )
    if "type" in value:
        loop, _ = _resolve(value["type"], key, where, ())
    _refuse_near(value, ("type",), where)
    extra = {"type", "_scope_", *(("by_epoch",) if key == "train_cfg" else ())}
    refuse_unknown(value, arguments(loop) - {"runner", "dataloader", "evaluator"} | extra, where)


def _check_model_cfg(value: Any, where: str, around: tuple[Registry, ...]) -> None:
    """A model's own ``train_cfg`` or ``test_cfg``, which it reads by name."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            _check_model_cfg(item, f"{where}[{i}]", around)
    elif isinstance(value, Mapping) and "type" in value:
        _check_typed(value, "", where, around)
    elif isinstance(value, Mapping):
        _check_untyped(value, where.rsplit(".", 1)[-1], where)
        refuse_unknown(value, MODEL_CFG, where)
        for name, item in value.items():
            if name == "nms" and isinstance(item, Mapping):
                _check_mmcv_op(item, name, f"{where}.nms", around)
            else:
                _check_model_cfg(item, f"{where}.{name}", around)


def _check_randomness(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    refuse_unknown(value, arguments(Runner.set_randomness), where)


def _check_optim_wrapper(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    _check_typed({"type": "OptimWrapper", **value}, key, where, around)
    paramwise = value.get("paramwise_cfg")
    if not isinstance(paramwise, Mapping):
        return
    where = f"{where}.paramwise_cfg"
    known = PARAMWISE.get(value.get("constructor"), sum(PARAMWISE.values(), ()))
    refuse_unknown(paramwise, known, where)
    for name, item in paramwise.get("custom_keys", {}).items():
        refuse_unknown(item, ("lr_mult", "decay_mult"), f"{where}.custom_keys.{name}")


def _skip(value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]) -> None:
    """Checked by what holds it."""


def _check_log_processor(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    _check_typed({"type": "LogProcessor", **value}, key, where, around)


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
    "randomness": _check_randomness,
    "paramwise_cfg": _skip,
    "log_processor": _check_log_processor,
    "optim_wrapper": _check_optim_wrapper,
    "clip_grad": _check_clip,
    "roi_layer": _check_mmcv_op,
    "nms": _check_mmcv_op,
}
