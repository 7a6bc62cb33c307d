"""The walk through a config: every dict against the constructor that its ``type`` names.

What single keys need beyond that stands in ``keys.py``, which fills ``SPECIAL``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Any

from mmengine.registry import Registry

from tokensparse.config_check.names import (
    ALL_REGISTRIES,
    DEFAULT_HOOKS,
    DICTS,
    FOREIGN_TRANSFORMS,
    FREE_VARIABLES,
    OWN_TYPES,
    REGISTRY_OF,
    TAKEN_OFF,
    TYPED,
    UNTYPED,
    arguments,
    found_in,
    known_arguments,
    named_types,
    names_in,
)
from tokensparse.plan.syntax import closest

#: key, path to it, registries around it: a check of what stands under one key
Check = Callable[[Any, str, str, tuple[Registry, ...]], None]
#: Checks of keys that no constructor describes, by key.
SPECIAL: dict[str, Check] = {}

#: Names that the config at hand declares legal.
extra: ContextVar[frozenset[str]] = ContextVar("extra", default=frozenset())


class ConfigError(ValueError):
    """A key or type that means nothing; the message names it and the nearest right one."""


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
        if key not in legal and key not in extra.get():
            raise ConfigError(
                f"{where}: unknown key {key!r}{closest(str(key), legal)}; "
                f"legal keys: {', '.join(legal)}{note}"
            )


def check_value(value: Any, key: str, where: str, around: tuple[Registry, ...]) -> None:
    """Check one value: ``key`` says what it is, ``around`` whence the dicts around it came."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            check_value(item, key, f"{where}[{i}]", around)
        return
    if not isinstance(value, Mapping):
        own = where.rsplit(".", 1)[-1].split("[")[0] == key
        if (
            (own or key == "default_hooks")
            and key in DICTS
            and isinstance(value, (str, int, float))
        ):
            raise ConfigError(f"{where}: expected a dict, got {value!r}")
        return
    special = SPECIAL.get(key)
    if special is not None:
        special(value, key, where, around)
    elif "type" in value:
        check_typed(value, key, where, around)
    else:
        check_untyped(value, key, where)
        own = REGISTRY_OF.get(key)
        for name, item in value.items():
            known = name in REGISTRY_OF or name in SPECIAL or name in UNTYPED
            inner = key if own is not None and not known else name
            if key in ("default_hooks", "custom_hooks") and isinstance(item, Mapping):
                require_type(item, f"{where}.{name}")
            check_value(item, inner, f"{where}.{name}", around if own is None else (own, *around))


def check_untyped(value: Mapping[str, Any], key: str, where: str) -> None:
    """A dict without ``type``: was one meant, and are its keys known?"""
    words = [k for k in value if isinstance(k, str)]
    refuse_near(words, ("type",), where)
    if key in TYPED and where.split(".")[-1].split("[")[0] in (key, *FREE_VARIABLES):
        require_type(value, where)
    if key == "default_hooks":
        refuse_near(words, DEFAULT_HOOKS, where)
    if key in UNTYPED:
        refuse_unknown(words, UNTYPED[key], where)


def refuse_near(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raise on a key that is almost a known one."""
    for key in given:
        near = get_close_matches(key.lower(), known, 1, 0.7)
        if near and key not in (*known, *extra.get()):
            raise ConfigError(f"{where}: unknown key {key!r} (did you mean {near[0]!r}?)")


def require_type(value: Mapping[str, Any], where: str) -> None:
    """Raise where a dict names no ``type``."""
    if "type" not in value:
        refuse_near([k for k in value if isinstance(k, str)], ("type",), where)
        raise ConfigError(f"{where}: has no 'type'; is {where.rsplit('.', 1)[-1]!r} misspelt?")


def check_typed(
    value: Mapping[str, Any], key: str, where: str, around: tuple[Registry, ...]
) -> None:
    """A dict with ``type``: keys against its constructor, values by recursion."""
    if key in OWN_TYPES:
        return
    target, source = resolve(value["type"], key, where, around)
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
            check_value(item, name, path, (source, *around))


def _taken_off(key: str) -> frozenset[str]:
    return TAKEN_OFF.get("norm_cfg" if key.endswith("norm_cfg") else key, frozenset())


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def resolve(
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
