"""Exact resume: stopped at any step, a run gives the same losses and weights, bit for bit."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reliability import EMA, QUIET, STEPS, VALIDATION, recorder, same, start, tiny_config, weights

from tokensparse.engine.checkpoint_reading import read_checkpoint

SOAK = bool(os.environ.get("TOKENSPARSE_SOAK"))


def resumed_everywhere(folder: Path, steps: range, **settings) -> str:
    """Train once, then again from the checkpoints of these steps; gives what was compared."""
    torch.set_num_threads(1)
    whole, losses = start(tiny_config(folder / "whole", **copy.deepcopy(settings)))
    final = weights(whole)
    assert len(set(losses.by_step.values())) == STEPS
    for step in steps:
        checkpoint = folder / "whole" / f"iter_{step}.pth"
        settings_now = {**copy.deepcopy(settings), **QUIET}
        again, found = start(tiny_config(folder / "again", **settings_now), resume=checkpoint)
        assert found.by_step == {s: v for s, v in losses.by_step.items() if s > step}, step
        assert same(final, weights(again)), step
    return f"{len(steps)} of {STEPS} steps: losses and weights equal bit for bit"


@pytest.mark.parametrize(
    ("name", "steps", "settings"),
    [
        ("plain", range(1, STEPS + 1, 1 if SOAK else 4), dict()),
        (
            "accumulation 2, EMA, validation",
            range(1, STEPS + 1),
            dict(accumulate=2, custom_hooks=EMA, **VALIDATION),
        ),
        (
            "2 workers, accumulation 3, EMA",
            range(1, STEPS + 1) if SOAK else (2, 5, 13),
            dict(workers=2, accumulate=3, custom_hooks=EMA),
        ),
        (
            "loop by iterations, infinite sampler",
            (1, 7, 20),
            dict(
                train_cfg=dict(_delete_=True, by_epoch=False, max_iters=STEPS, val_interval=100),
                train_dataloader=dict(sampler=dict(type="InfiniteSampler")),
                param_scheduler=[],
            ),
        ),
        (
            "loop by iterations over epochs, 2 workers",
            (5, 12),
            dict(
                workers=2,
                train_cfg=dict(_delete_=True, by_epoch=False, max_iters=STEPS, val_interval=100),
                param_scheduler=[],
            ),
        ),
    ],
)
def test_resumed_is_uninterrupted(
    name: str, steps: range, settings: dict, tmp_path: Path, record_property: Callable
) -> None:
    happened = resumed_everywhere(tmp_path, steps, **settings)
    recorder(record_property)(f"stopped after any step ({name})", "nothing changes", happened)


def test_a_schedule_that_follows_a_metric(tmp_path: Path, record_property: Callable) -> None:
    """An epoch's checkpoint is older than its validation, which the resumed run makes up for."""
    plateau = dict(
        type="ReduceOnPlateauLR", monitor="accuracy/top1", rule="greater", patience=0, factor=0.5
    )
    settings = dict(
        param_scheduler=[plateau],
        default_hooks=dict(checkpoint=dict(interval=1, by_epoch=True)),
        **VALIDATION,
    )
    whole, losses = start(tiny_config(tmp_path / "whole", **copy.deepcopy(settings)))
    rates = []
    for epoch in (1, 2, 3, 4):
        checkpoint = tmp_path / "whole" / f"epoch_{epoch}.pth"
        rates.append(read_checkpoint(checkpoint)["optimizer"]["param_groups"][0]["lr"])
        cfg = tiny_config(tmp_path / "again", **copy.deepcopy(settings))
        again, found = start(cfg, resume=checkpoint)
        assert found.by_step == {s: v for s, v in losses.by_step.items() if s > 5 * epoch}
        assert same(weights(whole), weights(again))
    assert len(set(rates)) > 1, "the rate never fell: the test proves nothing"
    recorder(record_property)(
        "stopped after any epoch, with a schedule that follows a metric",
        "nothing changes",
        "the validation that the schedule waits for is made up for; equal bit for bit",
    )


def test_workers_do_not_change_a_run(tmp_path: Path) -> None:
    (alone, first), (helped, second) = (
        start(tiny_config(tmp_path / str(n), workers=n, **QUIET)) for n in (0, 2)
    )
    assert first.by_step == second.by_step
    assert same(weights(alone), weights(helped))


def test_what_travels(tmp_path: Path) -> None:
    start(tiny_config(tmp_path, accumulate=2, train_cfg=dict(max_epochs=1)))
    meta = read_checkpoint(tmp_path / "iter_3.pth")["meta"]
    assert (meta["epoch"], meta["iter"]) == (0, 3)
    state = meta["resume"]
    assert set(state["random"][0]) >= {"python", "numpy", "torch"}
    assert (state["images_per_step"], state["steps_per_epoch"]) == (8, 5)
    assert any(g.abs().sum() > 0 for g in state["gradients"].values())
    even = read_checkpoint(tmp_path / "iter_4.pth")["meta"]["resume"]
    assert even["gradients"] == {}


def test_another_batch_size_goes_on_after_as_many_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tiny_config(tmp_path / "a", train_cfg=dict(max_epochs=2)))
    loader = dict(batch_size=4, num_batch_per_epoch=10)
    cfg = tiny_config(
        tmp_path / "b", train_cfg=dict(max_epochs=2), train_dataloader=loader, **QUIET
    )
    _, losses = start(cfg, resume=tmp_path / "a/iter_7.pth")
    assert min(losses.by_step) == 15 and max(losses.by_step) == 20  # 7 steps of 8 = 14 of 4
