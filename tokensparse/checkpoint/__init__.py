"""Pure key maps from released state dicts to our names, one file a family, and safe reading."""

from importlib import import_module
from pkgutil import iter_modules

from tokensparse.checkpoint.head import fit_head
from tokensparse.checkpoint.names import Rule, Translated, released_name, translate
from tokensparse.checkpoint.reading import read_state
from tokensparse.checkpoint.safe_load import (
    CheckpointError,
    add_allow_globals,
    allow_globals,
    safe_load,
)
from tokensparse.checkpoint.source import Source, Spatial

#: Every family by name, gathered from the files of this package.
SOURCES: dict[str, Source] = {}
for _module in sorted(module.name for module in iter_modules(__path__)):
    SOURCES.update(getattr(import_module(f"{__name__}.{_module}"), "SOURCES", {}))

__all__ = [
    "SOURCES",
    "CheckpointError",
    "Rule",
    "Source",
    "Spatial",
    "Translated",
    "add_allow_globals",
    "allow_globals",
    "fit_head",
    "read_state",
    "released_name",
    "safe_load",
    "translate",
]
