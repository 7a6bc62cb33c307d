"""NaN and Inf: no step is taken, the batch is named, the last good checkpoint stays."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from reliability import QUIET, recorder, same, start, tiny_config, weights

from tokensparse.blocks.centres import MaskOffset
from tokensparse.engine.checkpoints import newest_valid
from tokensparse.engine.finite import FiniteHook, NotFiniteError, losses_of, poisoned
from tokensparse.engine.runner import Runner

BAD_STEP = 7


class Bad(Hook):
    """At one step, makes the loss or a gradient not finite; remembers weights and images."""

    def __init__(self, where: str, value: float) -> None:
        self.where, self.value = where, value

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter + 1 != BAD_STEP:
            return
        self.before = weights(runner)
        self.images = list(runner.train_dataloader.indices)
        if self.where == "gradient":
            first = next(runner.model.parameters())
            self.handle = first.register_hook(lambda g: g * self.value)
        else:
            self.handle = runner.model.register_forward_hook(self.spoil, prepend=True)

    def spoil(self, model, inputs, outputs):
        self.handle.remove()
        extra = outputs["loss"].detach() * self.value  # a part without any gradient
        return {**outputs, "loss_extra": extra}


@pytest.mark.parametrize("clip", [None, dict(max_norm=1.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_no_step_is_taken(
    where: str, value: float, clip: dict | None, tmp_path: Path, record_property: Callable
) -> None:
    bad = Bad(where, value)
    runners: list[Runner] = []

    class Keep(Hook):
        def before_train(self, runner: Runner) -> None:
            runners.append(runner)

    cfg = tiny_config(tmp_path, optim_wrapper=dict(clip_grad=clip))
    with pytest.raises(NotFiniteError, match=f"iteration {BAD_STEP}:") as told:
        start(cfg, bad, Keep())
    assert same(bad.before, weights(runners[0]))
    assert all(f"image {i}" in str(told.value) for i in bad.images)
    assert newest_valid(tmp_path) == tmp_path / f"iter_{BAD_STEP - 1}.pth"
    recorder(record_property)(
        f"{value} in the {where}" + (", clip_grad" if clip else ""),
        "no step; the run ends with the images' ids; the last good checkpoint intact",
        f"weights unchanged, all {len(bad.images)} images named, the checkpoint before is valid",
    )


def test_accumulation_names_the_bad_batch_alone(tmp_path: Path) -> None:
    bad = Bad("loss", math.nan)
    with pytest.raises(NotFiniteError, match="iteration 8:") as told:
        start(tiny_config(tmp_path, accumulate=2, **QUIET), bad)
    assert str(told.value).count("process 0") == 1
    assert all(f"image {i}" in str(told.value) for i in bad.images)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    with_it, first = start(tiny_config(tmp_path / "a", **QUIET))
    cfg = tiny_config(tmp_path / "b", **QUIET)
    cfg.default_hooks.finite = None
    without, second = start(cfg)
    assert with_it.hook(FiniteHook) is not None and without.hook(FiniteHook) is None
    assert first.by_step == second.by_step and same(weights(with_it), weights(without))


def test_losses_are_summed_and_poisoned() -> None:
    weight = torch.ones((), requires_grad=True)
    outputs = {"loss_a": [weight * 2, weight * 3], "acc": torch.tensor(math.nan)}
    sums = losses_of(outputs)
    assert {k: float(v) for k, v in sums.items()} == {"loss_a": 5.0}
    fine = poisoned(outputs, sums["loss_a"])
    assert float(sum(fine["loss_a"])) == 5.0
    spoilt = poisoned(outputs, torch.tensor(math.inf))
    sum(spoilt["loss_a"]).backward()
    assert math.isnan(weight.grad)


@pytest.mark.parametrize("clip", [dict(type="value", clip_value=1.0),
                                  dict(max_norm=1.0, error_if_nonfinite=True)])  # fmt: skip
def test_clipping_hides_nothing(clip: dict, tmp_path: Path) -> None:
    bad = Bad("gradient", math.inf)
    with pytest.raises(NotFiniteError, match=f"iteration {BAD_STEP}:") as told:
        start(tiny_config(tmp_path, optim_wrapper=dict(clip_grad=clip)), bad)
    assert all(f"image {i}" in str(told.value) for i in bad.images)


def test_gradients_that_wait_are_not_saved_where_they_are_not_finite(
    tmp_path: Path, record_property: Callable
) -> None:
    bad = Bad("loss", math.nan)  # step 7 of 8 that belong to one update
    cfg = tiny_config(tmp_path, accumulate=4)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    with pytest.raises(NotFiniteError, match="waits for more batches") as told:
        start(cfg, bad)
    assert all(f"image {i}" in str(told.value) for i in bad.images)
    assert newest_valid(tmp_path) == tmp_path / f"iter_{BAD_STEP - 1}.pth"
    recorder(record_property)(
        "NaN between two updates of a run that accumulates gradients",
        "no checkpoint holds it; the last good one stays",
        "the run ends with the batch's images; the checkpoint before is valid",
    )


def test_a_bad_activation_is_no_crash() -> None:
    """The backward pass of grid_sample on a CPU follows NaN places out of its memory."""
    centres = MaskOffset(4)
    x = torch.full((2, 4, 6, 6), math.nan, requires_grad=True)
    centres(x, None, 2).sum().backward()
    assert torch.isnan(centres.point.weight.grad).any()
