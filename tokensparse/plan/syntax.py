"""From a config's plan to a list of step settings: the syntax, and its refusals.

Binding syntax::

    plan=[dict(stage=0, span=(3, None), reduce=dict(type='EViT', keep=0.7))]
    plan=dict(every=dict(type='ToMe', r=13, inflection=0.0))
    plan=dict(steps=[...], restore=dict(type='KNNRestore'))
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokensparse.registry import RECOVERIES, REDUCERS

PlanConfig = Sequence[Mapping[str, Any]] | Mapping[str, Any] | None


class PlanError(ValueError):
    """A plan that cannot run; the message names block, reducer and remedy."""


@dataclass(frozen=True)
class StepSettings:
    """One dumbbell, as written in a config.

    Attributes:
        reduce: settings of the reducer, with ``type``.
        stage: stage of the backbone.
        span: block at which it opens, block after which it closes; None leaves it open to the end
            of the stage (or of the model, where no merging follows).
        recover: settings of the recovery; None closes with the plan's ``restore`` where a map is
            needed.
        replaces: blocks that the reducer or the recovery stands for; they are not built.
        inside: kinds of the blocks inside, ``local`` or ``global``; with ``replaces`` they fill the
            span.
        allow_expansion: allow more tokens out than in.
        shrink: the recovered map is this many times smaller per side than the map before.
    """

    reduce: Mapping[str, Any]
    stage: int = 0
    span: tuple[int, int | None] = (0, None)
    recover: Mapping[str, Any] | None = None
    replaces: tuple[int, ...] = ()
    inside: tuple[str, ...] = ()
    allow_expansion: bool = False
    shrink: int = 1


def closest(name: str, legal: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest legal name, or nothing."""
    found = difflib.get_close_matches(name, list(legal), 1, 0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def refuse_unknown(given: Iterable[str], legal: Iterable[str], where: str) -> None:
    """Raise PlanError on the first key that is not legal, naming the nearest one."""
    legal = sorted(legal)
    for key in given:
        if key not in legal:
            raise PlanError(
                f"{where}: unknown key {key!r}{closest(key, legal)}; legal keys: {legal}"
            )


def parse_plan(
    cfg: PlanConfig, depths: Sequence[int]
) -> tuple[list[StepSettings], Mapping[str, Any]]:
    """Read a plan.

    Args:
        cfg: see the top of this file.
        depths: blocks of every stage.

    Returns:
        The steps in order of opening, and the settings of ``restore``.

    Raises:
        PlanError: a key, type or number that means nothing.
    """
    restore: Mapping[str, Any] = {"type": "Scatter"}
    steps: list[StepSettings] = []
    if cfg is None:
        return steps, restore
    if isinstance(cfg, Mapping):
        refuse_unknown(cfg, {"every", "stages", "steps", "restore"}, "plan")
        restore = cfg.get("restore", restore)
        _check_type(restore, RECOVERIES, "plan.restore")
        if "every" in cfg:
            steps += _every(cfg["every"], cfg.get("stages"), depths)
        elif "stages" in cfg:
            raise PlanError("plan: 'stages' goes with 'every'; a step names its own 'stage'")
        listed = cfg.get("steps", ())
    else:
        listed = cfg
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise PlanError(f"plan: expected a list of steps or a dict, got {listed!r}")
    steps += [_parse_step(step, f"plan[{i}]", depths) for i, step in enumerate(listed)]
    return sorted(steps, key=lambda s: (s.stage, s.span[0])), restore


def _every(
    cfg: Mapping[str, Any], stages: Sequence[int] | None, depths: Sequence[int]
) -> list[StepSettings]:
    _check_type(cfg, REDUCERS, "plan.every")
    cls: Any = cfg["type"] if isinstance(cfg["type"], type) else REDUCERS.get(cfg["type"])
    steps = []
    for stage in range(len(depths)) if stages is None else stages:
        if not 0 <= stage < len(depths):
            raise PlanError(f"plan.stages: stage {stage} of {len(depths)} stages does not exist")
        try:
            schedule = cls.schedule(cfg, depths[stage])
        except (TypeError, ValueError) as error:
            raise PlanError(f"plan.every: {cfg['type']}: {error}") from error
        steps += [
            StepSettings(settings, stage, (block, None))
            for block, settings in enumerate(schedule)
            if settings is not None
        ]
    return steps


def _parse_step(cfg: Mapping[str, Any], where: str, depths: Sequence[int]) -> StepSettings:
    if not isinstance(cfg, Mapping):
        raise PlanError(f"{where}: expected a dict, got {cfg!r}")
    refuse_unknown(cfg, {f.name for f in fields(StepSettings)}, where)
    if "reduce" not in cfg:
        raise PlanError(f"{where}: 'reduce' is missing, for example reduce=dict(type='TopK')")
    _check_type(cfg["reduce"], REDUCERS, f"{where}.reduce")
    if cfg.get("recover") is not None:
        _check_type(cfg["recover"], RECOVERIES, f"{where}.recover")
    cfg = dict(cfg)
    cfg["span"] = _parse_span(cfg.get("span", (0, None)), where)
    cfg["replaces"] = tuple(cfg.get("replaces", ()))
    cfg["inside"] = tuple(cfg.get("inside", ()))
    step = StepSettings(**cfg)
    _check_numbers(step, where, depths)
    return step


def _parse_span(span: Any, where: str) -> tuple[int, int | None]:
    legal = isinstance(span, Sequence) and not isinstance(span, str) and len(span) == 2
    if not legal or not isinstance(span[0], int) or not isinstance(span[1], int | None):
        raise PlanError(f"{where}: span={span!r} is no pair (first block, last block or None)")
    return span[0], span[1]


def _check_numbers(step: StepSettings, where: str, depths: Sequence[int]) -> None:
    if not isinstance(step.stage, int) or not 0 <= step.stage < len(depths):
        raise PlanError(f"{where}: stage={step.stage!r}, but there are stages 0..{len(depths) - 1}")
    depth = depths[step.stage]
    first, last = step.span
    if not 0 <= first < depth:
        raise PlanError(
            f"{where}: span opens at block {first}, "
            f"but stage {step.stage} has blocks 0..{depth - 1}"
        )
    if last is not None and not first <= last < depth:
        raise PlanError(
            f"{where}: span={step.span} closes at block {last}; legal: {first}..{depth - 1} or None"
        )
    span = range(first, depth if last is None else last + 1)
    for block in step.replaces:
        if block not in span:
            raise PlanError(f"{where}: replaces block {block}, which lies outside span={step.span}")
    for kind in step.inside:
        if kind not in ("local", "global"):
            raise PlanError(f"{where}: inside={kind!r}; legal: 'local', 'global'")
    if step.inside and len(step.inside) + len(set(step.replaces)) != len(span):
        raise PlanError(
            f"{where}: span={step.span} has {len(span)} blocks, but {len(set(step.replaces))} "
            f"replaced and {len(step.inside)} inside make "
            f"{len(step.inside) + len(set(step.replaces))}; they must fill the span"
        )
    if not isinstance(step.shrink, int) or step.shrink < 1:
        raise PlanError(f"{where}: shrink={step.shrink!r}; expected an integer of at least 1")


def _check_type(cfg: Any, registry: Any, where: str) -> None:
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise PlanError(f"{where}: expected dict(type=...), got {cfg!r}")
    name = cfg["type"]
    if isinstance(name, str) and registry.get(name) is None:
        legal = sorted(registry.module_dict)
        raise PlanError(f"{where}: unknown type {name!r}{closest(name, legal)}; known: {legal}")
