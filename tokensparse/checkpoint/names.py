"""Released parameter names to ours, and back.

A rule is a pair of templates. ``{i}`` and ``{j}`` stand for numbers, and a number may be a line in
one: ``features.{2i+1}`` beside ``stages.{i}``. ``{leaf}`` stands for the last word (``weight``,
``bias``). Rules read in both directions, so that messages can speak of the names in the file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from torch import Tensor

_PLACE = re.compile(r"\{(?:(\d*)([ij])([+-]\d+)?|(leaf))\}")


class Rule(NamedTuple):
    """One kind of parameter.

    Attributes:
        theirs: template of the released name.
        ours: template of our name.
        change: released tensor to ours, where the values are stored in another order.
    """

    theirs: str
    ours: str
    change: Callable[[Tensor], Tensor] | None = None


class Translated(NamedTuple):
    """A state dict in our names.

    Attributes:
        state: tensors by our names.
        extra: released names that no rule knows.
    """

    state: dict[str, Tensor]
    extra: list[str]


@cache
def _compiled(template: str) -> tuple[re.Pattern[str], tuple[tuple[str, int, int], ...]]:
    """Pattern of a template, and (letter, factor, offset) of each of its places."""
    pattern, places, end = "", [], 0
    for found in _PLACE.finditer(template):
        pattern += re.escape(template[end : found.start()])
        end = found.end()
        factor, letter, offset, leaf = found.groups()
        pattern += "([a-z_]+)" if leaf else r"(\d+)"
        places.append((leaf or letter, int(factor or 1), int(offset or 0)))
    return re.compile(pattern + re.escape(template[end:])), tuple(places)


def _read(template: str, name: str) -> dict[str, str | int] | None:
    """Values of the places, or None where the name does not fit."""
    pattern, places = _compiled(template)
    found = pattern.fullmatch(name)
    if found is None:
        return None
    values: dict[str, str | int] = {}
    for (letter, factor, offset), text in zip(places, found.groups(), strict=True):
        value: str | int = text
        if letter != "leaf":
            value, rest = divmod(int(text) - offset, factor)
            if rest or value < 0:
                return None
        if values.setdefault(letter, value) != value:
            return None
    return values


def _write(template: str, values: Mapping[str, str | int]) -> str:
    def put(found: re.Match[str]) -> str:
        factor, letter, offset, leaf = found.groups()
        value = values[leaf or letter]
        return str(value if isinstance(value, str) else value * int(factor or 1) + int(offset or 0))

    return _PLACE.sub(put, template)


def translate(theirs: Mapping[str, Tensor], rules: Sequence[Rule]) -> Translated:
    """Rename every tensor.

    Args:
        theirs: released tensors by name.
        rules: the first that fits a name is taken.

    Returns:
        Tensors by our names, and what no rule knows.
    """
    state: dict[str, Tensor] = {}
    extra = []
    for name, value in theirs.items():
        ours = None
        for rule in rules:
            values = _read(rule.theirs, name)
            if values is not None:
                ours = _write(rule.ours, values)
                break
        if ours is None or ours in state:
            extra.append(name)
        else:
            state[ours] = value if rule.change is None else rule.change(value)
    return Translated(state, extra)


def released_name(ours: str, rules: Sequence[Rule]) -> str:
    """The name in the file of one of our parameters, or ours where no rule makes it."""
    for rule in rules:
        values = _read(rule.ours, ours)
        if values is not None:
            return _write(rule.theirs, values)
    return ours


def prefixed(prefix: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The same rules for released names behind a prefix."""
    return tuple(rule._replace(theirs=prefix + rule.theirs) for rule in rules)
