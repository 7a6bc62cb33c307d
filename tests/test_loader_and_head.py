"""The loader's clock, and heads of another number of classes."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from small import VIT
from torch import nn

from tokensparse.checkpoint import CheckpointError, fit_head
from tokensparse.classification.classifier import check_labels
from tokensparse.engine.runner import Runner
from tokensparse.registry import MODELS

ROOT = Path(__file__).parents[1]
BACKBONE = dict(type="tokensparse.VisionTransformer", arch=VIT, img_size=32, patch_size=16)


def classifier(classes: int, **head) -> torch.nn.Module:
    head = dict(type="tokensparse.LinearHead", num_classes=classes, **head)
    return MODELS.build(dict(type="tokensparse.ImageClassifier", backbone=BACKBONE, head=head))


def test_another_number_of_classes_is_refused_or_replaced(caplog) -> None:
    state, model = classifier(7).state_dict(), classifier(10)
    with pytest.raises(CheckpointError, match=r"x.pth: head.* has 7 rows .*model 10.*replace_head"):
        fit_head(state, model, "x.pth")
    fitted = fit_head(state, model, "x.pth", replace=True)
    model.load_state_dict(fitted)
    own = model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in state.items() if k.startswith("backbone."))
    same = classifier(10).state_dict()
    assert fit_head(same, model, "x.pth") is same


def test_other_misfits_are_not_taken_for_heads() -> None:
    state = classifier(10).state_dict()
    state["backbone.stages.0.blocks.0.mlp.fc1.bias"] = torch.ones(3)
    assert fit_head(state, classifier(10), "x.pth", replace=True) is state


@pytest.mark.parametrize("replace", [False, True])
def test_by_load_from(replace: bool, tmp_path: Path, capsys) -> None:
    """The runner refuses at start, before a step; or says what it left out."""
    torch.save({"state_dict": classifier(7).state_dict()}, tmp_path / "seven.pth")
    cfg = Config.fromfile(ROOT / "configs/sparseswin_cls.py")
    for loader in ("train", "val", "test"):
        cfg[f"{loader}_dataloader"].dataset.img_size = 32
    cfg.model.backbone = BACKBONE
    cfg.update(work_dir=str(tmp_path), load_from=str(tmp_path / "seven.pth"), launcher="none")
    cfg.replace_head = replace
    cfg.experiment_name = f"head{replace}"
    runner = Runner.from_cfg(cfg)
    if not replace:
        with pytest.raises(CheckpointError, match="has 7 rows"):
            runner.load_or_resume()
        return
    runner.logger.setLevel(logging.INFO)
    runner.load_or_resume()
    log = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "replace_head: head" in log and "7 classes" in log


def test_the_loaders_clock(tmp_path: Path) -> None:
    out = tmp_path / "loader.json"
    command = [sys.executable, "tools/measure_loader.py", "", "--step"]
    config = tmp_path / "small.py"
    config.write_text(
        f"_base_ = [{str(ROOT / 'configs/sparseswin_cls.py')!r}]\n"
        f"model = dict(backbone=dict(_delete_=True, **{BACKBONE!r}))\n"
        "train_dataloader = dict(dataset=dict(img_size=32), batch_size=8)\n"
    )
    command[2] = str(config)
    done = subprocess.run(
        [*command, "--images", "50", "--batches", "4", "--json", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["reading"]["images_per_second_and_core"] > 0
    training = found["training"]
    assert 0 < training["waiting_share"] < 1
    assert training["wait_ms"] < training["step_ms"]


@pytest.mark.parametrize("wrong", ["decode_head", "auxiliary_head", "bbox_head.1", "mask_head"])
def test_every_head_of_a_detector_or_segmentor_is_checked(wrong: str) -> None:
    model = nn.ModuleDict({k: nn.Identity() for k in ("decode_head", "auxiliary_head")})
    model["roi_head"] = nn.ModuleDict(
        {"bbox_head": nn.ModuleList([nn.Identity(), nn.Identity()]), "mask_head": nn.Identity()}
    )
    model["rpn_head"] = nn.Identity()
    model["rpn_head"].num_classes = 1
    for name, part in model.named_modules():
        if name.split(".")[-1] in ("decode_head", "auxiliary_head", "0", "1", "mask_head"):
            part.num_classes = 10
    data = SimpleNamespace(metainfo=dict(classes="0123456789"))
    check_labels(model, data, "train_dataloader")
    next(part for name, part in model.named_modules() if name.endswith(wrong)).num_classes = 7
    with pytest.raises(ValueError, match=rf"10 classes, but model\.\S*{wrong}\.num_classes=7; set"):
        check_labels(model, data, "train_dataloader")
