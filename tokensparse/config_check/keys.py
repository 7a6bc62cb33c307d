"""What single keys of a config need beyond the constructor that a ``type`` names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from tokensparse.config_check.names import MODEL_CFG, PARAMWISE, arguments
from tokensparse.config_check.walk import (
    SPECIAL,
    ConfigError,
    check_typed,
    check_untyped,
    check_value,
    refuse_near,
    refuse_unknown,
    require_type,
    resolve,
)
from tokensparse.plan.syntax import StepSettings, closest


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
            require_type(value[name], f"{where}.{name}")
            check_typed(value[name], name, f"{where}.{name}", around)
    if "every" in value:
        _check_every(value["every"], f"{where}.every")


def _check_every(value: Mapping[str, Any], where: str) -> None:
    """``every``: what the schedule takes off is legal, what it passes on must be an argument."""
    require_type(value, where)
    target, _ = resolve(value["type"], "every", where, ())
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
        check_value(item, name, f"{where}.{name}", ())


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
        loop, _ = resolve(value["type"], key, where, ())
    refuse_near(value, ("type",), where)
    extra = {"type", "_scope_", *(("by_epoch",) if key == "train_cfg" else ())}
    refuse_unknown(value, arguments(loop) - {"runner", "dataloader", "evaluator"} | extra, where)
    for name in ("max_epochs", "max_iters", "val_interval"):
        _require_count(value.get(name), f"{where}.{name}")


def _check_model_cfg(value: Any, where: str, around: tuple[Registry, ...]) -> None:
    """A model's own ``train_cfg`` or ``test_cfg``, which it reads by name."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            _check_model_cfg(item, f"{where}[{i}]", around)
    elif isinstance(value, Mapping) and "type" in value:
        check_typed(value, "", where, around)
    elif isinstance(value, Mapping):
        check_untyped(value, where.rsplit(".", 1)[-1], where)
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
    check_typed({"type": "OptimWrapper", **value}, key, where, around)
    paramwise = value.get("paramwise_cfg")
    if paramwise is None:
        return
    _require_dict(paramwise, f"{where}.paramwise_cfg")
    where = f"{where}.paramwise_cfg"
    known = PARAMWISE.get(value.get("constructor"), sum(PARAMWISE.values(), ()))
    refuse_unknown(paramwise, known, where)
    keys = paramwise.get("custom_keys", {})
    _require_dict(keys, f"{where}.custom_keys")
    for name, item in keys.items():
        _require_dict(item, f"{where}.custom_keys.{name}")
        refuse_unknown(item, ("lr_mult", "decay_mult"), f"{where}.custom_keys.{name}")


def _skip(value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]) -> None:
    """Checked by what holds it."""


def _check_log_processor(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    check_typed({"type": "LogProcessor", **value}, key, where, around)
    for i, item in enumerate(value.get("custom_cfg") or ()):
        place = f"{where}.custom_cfg[{i}]"
        _require_dict(item, place)
        refuse_unknown(item, ("data_src", "method_name", "log_name", "window_size"), place)
        method = item.get("method_name", "mean")
        if method not in (known := HistoryBuffer()._statistics_methods):
            raise ConfigError(
                f"{place}.method_name: unknown method {method!r}{closest(str(method), known)}"
            )


def _check_schedule(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """Of ``ProfilerHook``."""
    refuse_unknown(value, arguments(torch.profiler.schedule), where)


def _check_trace_ready(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """Of ``ProfilerHook``, which takes two words for ``type``."""
    legal = dict(
        log_trace=torch.autograd.profiler_util.EventList.table,
        tb_trace=torch.profiler.tensorboard_trace_handler,
    )
    require_type(value, where)
    kind = value["type"]
    if kind not in legal:
        raise ConfigError(f"{where}: unknown type {kind!r}{closest(str(kind), legal)}")
    refuse_unknown(value, arguments(legal[kind]) | {"type"}, where)


def _require_count(value: Any, where: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{where}: expected a whole number from 1, got {value!r}")


def _require_dict(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a dict, got {value!r}")


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


CHECKS: dict[str, Callable[..., None]] = {
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
    "schedule": _check_schedule,
    "on_trace_ready": _check_trace_ready,
    "optim_wrapper": _check_optim_wrapper,
    "clip_grad": _check_clip,
    "roi_layer": _check_mmcv_op,
    "nms": _check_mmcv_op,
}
SPECIAL.update(CHECKS)
