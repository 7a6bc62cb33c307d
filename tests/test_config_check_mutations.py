"""Every key of every shipped config, misspelt, is refused before data open."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config, DictAction

from tokensparse.config_check import ConfigError, check_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in ROOT.glob("configs/**/*.py") if "_base_" not in p.parts)
FREE = "_"  # variables of a config begin with it
Place = tuple[str | int, ...]


def keys(value: Any, path: Place = ()) -> Iterator[tuple[Place, str]]:
    """(path of the dict, key) at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str) and not key.startswith(FREE):
                yield path, key
                yield from keys(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from keys(item, (*path, i))


def renamed(value: Any, path: Place, key: str, new: str) -> Any:
    """A copy in which one key has another name; what does not change is shared."""
    if not path:
        return {new if k == key else k: v for k, v in value.items()}
    first, *rest = path
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    changed = [(k, renamed(v, tuple(rest), key, new) if k == first else v) for k, v in pairs]
    return dict(changed) if isinstance(value, dict) else [v for _, v in changed]


def alone(cfg: dict[str, Any], top: str) -> dict[str, Any]:
    """What one top-level key's check reads: itself, scope and imports, the model's parameters."""
    needed = (top, "default_scope", "custom_imports", *(["model"] * (top == "optim_wrapper")))
    return {k: v for k, v in cfg.items() if k in needed}


def meaning(cfg: Any, path: Place, key: str) -> tuple:
    """Two keys of one meaning are checked alike: types on the way, names without numbers."""
    kinds, value = [cfg.get("default_scope")], cfg
    for step in path:
        kinds.append(str(value.get("type")) if isinstance(value, dict) else "")
        value = value[step]
    kinds.append(str(value.get("type")))
    return (*kinds, *(step for step in path if isinstance(step, str)), key)


def misspelt(key: str, turn: int) -> str:
    """One slip of the finger: a letter doubled, put in, left out or swapped, in turn."""
    middle = max(len(key) // 2, 1)
    slips = (
        key + key[-1],
        key[:middle] + "x" + key[middle:],
        key[:middle] + key[middle + 1 :],
        key[: middle - 1] + key[middle : middle + 1] + key[middle - 1] + key[middle + 1 :],
    )
    new = slips[turn % 4]
    return new if new not in (key, "") and len(key) > 3 else slips[1]


def test_every_key_of_every_config(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    # Keys come first; whether the heads fit is another question, and slow to ask.
    monkeypatch.setattr("tokensparse.config_check.check.check_fit", lambda model: None)
    seen: set[tuple] = set()
    wrong = []
    for file in CONFIGS:
        cfg = Config.fromfile(file).to_dict()
        check_config(cfg)
        for path, key in keys(cfg):
            what = meaning(cfg, path, key)
            if what in seen:
                continue
            seen.add(what)
            new = misspelt(key, len(seen))
            where = f"{file.stem}: {'.'.join(map(str, path))} {key} -> {new}"
            try:
                check_config(alone(renamed(cfg, path, key, new), str((*path, new)[0])))
                wrong.append(f"{where}: passes")
            except ConfigError as error:
                if f"'{new}'" not in str(error) or f"'{key}'" not in str(error):
                    wrong.append(f"{where}: {str(error)[:120]}")
    assert not wrong, f"{len(wrong)} of {len(seen)}\n" + "\n".join(wrong)
    assert len(seen) > 1000


@pytest.mark.parametrize(
    "option",
    [
        "model.head.num_clases=10",
        "model.backbone.arch.num_token=9",
        "optim_wrapper.paramwise_cfg.custom_keys.pos_embd.lr_mult=2",
        "default_hooks.checkpoint.max_keep_ckpt=3",
        "env_cfg.mp_cfg.mp_start_metod=spawn",
        "auto_scale_lr.enabled=True",
        "train_cfg.max_epoch=3",
        "epochs=3",
    ],
)
def test_options_of_the_command_line(option: str) -> None:
    name, value = option.split("=")
    cfg = Config.fromfile(ROOT / "configs/sparseswin_cls.py")
    check_config(cfg)
    cfg.merge_from_dict({name: DictAction._parse_iterable(value)})
    wrong = {"enabled": "enabled", "lr_mult": "pos_embd"}.get(name.rsplit(".", 1)[-1])
    with pytest.raises(ConfigError, match=f"unknown key '{wrong or name.rsplit('.', 1)[-1]}'"):
        check_config(cfg)


def test_names_that_the_config_declares_pass() -> None:
    cfg = Config.fromfile(ROOT / "configs/sparseswin_cls.py")
    cfg.merge_from_dict({"my_variable": 3, "env_cfg.mp_cfg.cores": 2})
    with pytest.raises(ConfigError, match=r"'my_variable'.*underscore, or is named in _extra_keys"):
        check_config(cfg)
    cfg.merge_from_dict({"_extra_keys": ["my_variable", "cores"]})
    check_config(cfg)


def test_loops_by_type_and_metainfo() -> None:
    cfg = Config.fromfile(ROOT / "configs/sparseswin_cls.py")
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=3)
    check_config(cfg)
    cfg.train_cfg.val_intervall = 2
    with pytest.raises(ConfigError, match=r"'val_intervall' \(did you mean 'val_interval'"):
        check_config(cfg)
