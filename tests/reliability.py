"""Tiny runs for the tests of reliability: 20 steps of 8 digits at 32 px, in this process."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope

import tokensparse  # noqa: F401  registers everything
from tokensparse.engine.runner import Runner

STEPS = 20
_number = itertools.count()


def tiny_config(work_dir: Path, workers: int = 0, accumulate: int = 1, **changes: Any) -> Config:
    """Four epochs of five steps with all that draws random numbers; saved after every step."""
    data = dict(
        type="tokensparse.DigitsDataset",
        img_size=32,
        augment=dict(hflip=0.5, color_jitter=0.3, scale=(0.5, 1.0)),
    )
    loader = dict(
        collate_fn=dict(type="default_collate"),
        batch_size=8,
        num_workers=workers,
        persistent_workers=False,
    )
    cfg = dict(
        default_scope="mmengine",
        work_dir=str(work_dir),
        experiment_name=f"tiny-{next(_number)}",
        model=dict(
            type="tokensparse.ImageClassifier",
            data_preprocessor=dict(
                type="tokensparse.ImagePreprocessor",
                mixup=dict(mixup_alpha=0.8, num_classes=10),
                random_erase=dict(probability=0.5),
            ),
            backbone=dict(
                type="tokensparse.VisionTransformer",
                arch=dict(embed_dim=16, depth=2, num_heads=2),
                img_size=32,
                patch_size=8,
                drop_path_rate=0.3,
            ),
            head=dict(type="tokensparse.LinearHead", num_classes=10),
        ),
        train_dataloader=dict(
            dataset=dict(split="train", **data),
            sampler=dict(type="DefaultSampler", shuffle=True),
            num_batch_per_epoch=5,
            **loader,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(
            type="OptimWrapper",
            optimizer=dict(type="AdamW", lr=1e-3),
            accumulative_counts=accumulate,
        ),
        param_scheduler=[
            dict(type="CosineAnnealingLR", begin=0, end=4, convert_to_iter_based=True)
        ],
        default_hooks=dict(
            logger=None,
            checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=False, max_keep_ckpts=-1),
        ),
        visualizer=dict(type="Visualizer", vis_backends=[]),
        randomness=dict(seed=0),
    )
    made = Config(cfg)
    made.merge_from_dict(changes)
    return made


VALIDATION = dict(
    val_dataloader=dict(
        dataset=dict(type="tokensparse.DigitsDataset", split="val", img_size=32),
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="default_collate"),
        num_batch_per_epoch=2,
        batch_size=8,
        num_workers=0,
    ),
    val_evaluator=dict(type="tokensparse.Accuracy"),
    val_cfg=dict(),
)
EMA = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.1)]

QUIET = dict(default_hooks=dict(checkpoint=dict(interval=100, save_last=False)))


def recorder(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """Notes one fault for ``docs/reliability.md``: what it is, what is promised, what happened."""

    def note(fault: str, promised: str, happened: str) -> None:
        record_property("fault", fault)
        record_property("promised", promised)
        record_property("happened", happened)

    return note


class Losses(Hook):
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.by_step[runner.iter + 1] = float(outputs["loss"].detach())


def start(cfg: Config, *hooks: Hook, resume: str | Path | bool = False) -> tuple[Runner, Losses]:
    """Train; gives the runner and the losses.

    Args:
        cfg: of :func:`tiny_config`.
        hooks: more of them.
        resume: a checkpoint, or True for the newest.
    """
    cfg.resume = bool(resume)
    if isinstance(resume, (str, Path)):
        cfg.load_from = str(resume)
    losses = Losses()
    scopes = DefaultScope._instance_dict.copy()
    text = patch.object(Config, "pretty_text", PropertyMock(return_value=""))  # it takes 0.3 s
    flush = patch("os.fsync")  # so do disks that others write to
    try:
        with text, flush:
            runner = Runner.from_cfg(cfg)
            for hook in (losses, *hooks):
                runner.register_hook(hook)
            runner.train()
    finally:
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(scopes)
    return runner, losses


def weights(runner: Runner) -> dict[str, torch.Tensor]:
    """Copies of a runner's weights."""
    return {k: v.detach().clone() for k, v in runner.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
