"""Every block of docs/training.md is a config that is accepted and trains."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import tokensparse  # noqa: F401
from tokensparse.config_check import check_config
from tokensparse.engine.runner import Runner

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)


def with_block(block: str, folder: Path) -> Config:
    """The page's config with one of its blocks, cut to three steps."""
    path = folder / "with_block.py"
    path.write_text(f"_base_ = {str(ROOT / 'configs/stvit/stvit-deit_digits.py')!r}\n{block}")
    cfg = Config.fromfile(path)
    cfg.work_dir = str(folder / "work")
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=3)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = None
    cfg.train_dataloader.batch_size = 4
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=3, by_epoch=False)
    cfg.log_processor = dict(by_epoch=False)
    return cfg


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: re.findall(r"\w+", b)[-1])
def test_block_trains(block: str, tmp_path: Path) -> None:
    cfg = with_block(block, tmp_path)
    check_config(cfg)
    runner = Runner.from_cfg(cfg)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    after = torch.load(tmp_path / "work/iter_3.pth", weights_only=False)
    assert any(not v.equal(before[k]) for k, v in after["state_dict"].items())
    if "EMAHook" in block:
        live, averaged = after["ema_state_dict"], after["state_dict"]
        assert any(not live[f"module.{k}"].equal(v) for k, v in averaged.items())
    if "layer_decay" in block:
        rates = {group["lr"] for group in runner.optim_wrapper.param_groups}
        assert len(rates) > 3
    if "accumulative" in block:
        assert runner.optim_wrapper._accumulative_counts == 4


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 7
