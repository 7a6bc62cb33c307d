"""Every config parses, passes the strict check, builds, and says where it comes from."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from tokensparse.analysis import count
from tokensparse.config_check import check_config
from tokensparse.registry import MODELS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in ROOT.glob("configs/**/*.py") if "_base_" not in p.parts)
PUBLISHED_PARAMETERS = {"sparseswin-t_cifar10": 20_241_801, "sparseswin-t_in100": 20_287_971}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def entries(kind: str = "models") -> dict[str, dict]:
    files = ROOT.glob("configs/*/metafile.yml")
    models = [m for f in files for m in yaml.safe_load(f.read_text()).get(kind, [])]
    return {m["config"]: m for m in models}


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_header_is_complete(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, "no header"
    lines = re.sub(r"\n +", " ", text).splitlines()  # a field goes on in indented lines
    fields = {line.split(":")[0]: line.split(":", 1)[1] for line in lines if ":" in line}
    for field in ("Paper", "Command", "Cost", "Published", "Measured"):
        assert fields.get(field, "").strip(), f"{field} is missing"
    assert str(path.relative_to(ROOT)) in fields["Command"]


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_passes_builds_and_has_its_entry(path: Path) -> None:
    cfg = Config.fromfile(path)
    check_config(cfg)
    entry = entries().get(str(path.relative_to(ROOT)))
    meta = cfg.get("model") if entry is None else entry
    if cfg.model.type != "tokensparse.ImageClassifier":
        entry = entries("dense")[str(path.relative_to(ROOT))]
        settings = {k: v for k, v in cfg.model.backbone.items() if k != "init_cfg"}
        with torch.device("meta"):
            found = count(MODELS.build(settings), entry["size"])
        assert (entry["parameters"], entry["gmacs"]) == (found.params, round(found.macs / 1e9, 5))
        published = " ".join(ast.get_docstring(ast.parse(path.read_text())).split())
        assert all(str(v) in published for v in (entry["published"] or {}).values())
        return
    assert entry is not None, "no entry in metafile.yml"
    with torch.device("meta"):
        model = MODELS.build(cfg.model).eval()
        logits = model(torch.empty(2, 3, *[cfg.train_dataloader.dataset.img_size] * 2))
    assert logits.shape == (2, cfg.model.head.num_classes)
    parameters = sum(p.numel() for p in model.parameters())
    assert meta["parameters"] == parameters
    assert meta["gmacs"] == round(count(model, cfg.train_dataloader.dataset.img_size).macs / 1e9, 5)
    assert parameters == PUBLISHED_PARAMETERS.get(path.stem, parameters)


def test_tables_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "tools/make_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
