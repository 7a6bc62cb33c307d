"""The whole of a config: what runs ask for before data open."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.runner import checkpoint as mm_checkpoint
from mmengine.utils import import_modules_from_strings

from tokensparse.backbones import check_fit
from tokensparse.config_check import keys  # noqa: F401  fills SPECIAL
from tokensparse.config_check.names import (
    FREE_VARIABLES,
    MM_SCOPES,
    PARAMETERS,
    SWITCHES,
    TEXT,
    TOP_LEVEL_EXTRA,
    UNTYPED,
    arguments,
    own_variables,
    without_weights,
)
from tokensparse.config_check.walk import (
    ConfigError,
    check_value,
    extra,
    refuse_near,
    refuse_unknown,
)
from tokensparse.plan.syntax import closest
from tokensparse.registry import MODELS


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
    refuse_near(cfg, ("default_scope", "custom_imports"), "config")
    _check_kinds(cfg)
    imports = cfg.get("custom_imports")
    if imports:
        refuse_unknown(imports, UNTYPED["custom_imports"], "custom_imports")
        try:
            import_modules_from_strings(**imports)
        except (ImportError, TypeError) as error:
            raise ConfigError(f"custom_imports: {str(error).splitlines()[0]}") from error
    scope = cfg.get("default_scope") or "mmengine"
    known = {"mmengine", "tokensparse", *MM_SCOPES, *MODELS.parent.children}
    if scope not in known:
        raise ConfigError(f"default_scope: unknown scope {scope!r}{closest(scope, known)}")
    if scope in MM_SCOPES:  # what their configs name without a scope is theirs
        import_module(f"{scope}.utils").register_all_modules(init_default_scope=False)
    token = extra.set(frozenset(cfg.get("_extra_keys") or ()))
    try:
        with DefaultScope.overwrite_default_scope(scope):
            _check_all(cfg, scope)
    finally:
        extra.reset(token)


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """A config file with ``--cfg-options``, not checked yet.

    Args:
        path: of the file.
        options: see :func:`merge_options`.

    Raises:
        FileNotFoundError: no such file, naming the nearest config of the folder or of ``configs``;
            or one that it builds on.
        ImportError: what it imports is not installed.
        ConfigError: the file does not run; see also :func:`merge_options`.
    """
    path = Path(path)
    if not path.is_file():
        near = [p for folder in (path.parent, Path("configs")) for p in folder.glob("**/*.py")]
        there = {p.as_posix() for p in near if "_base_" not in p.parts} if path.suffix else set()
        raise FileNotFoundError(f"no config {path.as_posix()!r}{closest(path.as_posix(), there)}")
    try:
        cfg = Config.fromfile(path)
    except (FileNotFoundError, ImportError):
        raise
    except SyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno}: {error.msg}") from error
    except Exception as error:  # the file is a program, which fails as it likes
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    merge_options(cfg, options)
    return cfg


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Put ``--cfg-options`` into a config, in place.

    Args:
        cfg: as its file says.
        options: dotted names and values; None changes nothing.

    Raises:
        ConfigError: a free variable (``_name``), which nothing reads any more; or a path through
            what is no dict.
    """
    if options is None:
        return
    for name in options:
        if name.startswith("_") and name != "_extra_keys":
            raise ConfigError(
                f"--cfg-options {name}: a free variable of a config is used while its file is "
                "read, and nothing reads it later; set what it was put into"
            )
    try:
        cfg.merge_from_dict(options)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(f"--cfg-options {' '.join(options)}: {error}") from error


def _check_kinds(cfg: Config | Mapping[str, Any]) -> None:
    """Text, switches and dicts at the top level, before anything reads them."""
    for names, kind, expected in (
        (TEXT, str, "text"),
        (SWITCHES, bool, "True or False"),
        (("custom_imports", "optim_wrapper"), Mapping, "a dict"),
    ):
        for name in names:
            value = cfg.get(name)
            if value is not None and not isinstance(value, kind):
                raise ConfigError(f"{name}: expected {expected}, got {value!r}")
    given = cfg.get("_extra_keys") or ()
    if isinstance(given, str) or not all(isinstance(name, str) for name in _items(given)):
        raise ConfigError(f"_extra_keys: expected a list of names, got {given!r}")


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, Iterable) else (value,)


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
        check_value(cfg[key], "pipeline" if key.endswith("pipeline") else key, key, ())
    if isinstance(cfg.get("model"), Mapping):
        _check_custom_keys(cfg)
        check_fit(cfg["model"])


_VARIABLES = (
    "; a variable of the config itself begins with an underscore, or is named in _extra_keys"
)


@contextmanager
def no_files() -> Iterator[None]:
    """Let nothing within the block read a checkpoint: a check opens no file.

    Raises:
        RuntimeError: something tries to.
    """

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no checkpoint is read while a config is checked")

    with patch("torch.load", refuse), patch.object(mm_checkpoint, "_load_checkpoint", refuse):
        yield


def _check_custom_keys(cfg: Config | Mapping[str, Any]) -> None:
    """Refuse a ``paramwise_cfg.custom_keys`` that no parameter's name holds."""
    paramwise = (cfg.get("optim_wrapper") or {}).get("paramwise_cfg") or {}
    given = [k for k in paramwise.get("custom_keys", {}) if k not in PARAMETERS]
    if not given:
        return
    try:
        with torch.device("meta"), no_files():
            model = MODELS.build(ConfigDict(without_weights(cfg["model"])))
    except RuntimeError:  # some models of others compute, or read, while they are built
        return
    names = [name for name, _ in model.named_parameters()]
    known = PARAMETERS | {part for name in names for part in name.split(".")}
    for key in given:
        if not any(key in name for name in names):
            raise ConfigError(
                f"optim_wrapper.paramwise_cfg.custom_keys: unknown key {key!r}"
                f"{closest(key, known)}: no parameter's name holds it"
            )
