"""Exact resume: random numbers, place in the data and open gradients travel in the checkpoint."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor

from tokensparse.engine.randomness import random_state, set_random_state
from tokensparse.registry import HOOKS


def images_per_step(runner: Runner) -> int:
    """Images of a batch over all processes; 0 where the loader does not say."""
    sampler = getattr(runner.train_dataloader, "batch_sampler", None)
    return (getattr(sampler, "batch_size", None) or 0) * get_world_size()


def _ordered_by(runner: Runner) -> dict[str, Any]:
    """What orders the images and seeds them, by name."""
    batches = getattr(runner.train_dataloader, "batch_sampler", None)
    parts = {"batches": batches, "sampler": getattr(batches, "sampler", None)}
    return {name: part for name, part in parts.items() if isinstance(_seed(part), int)}


def _seed(part: Any) -> Any:
    return getattr(part, "seed", None)


def order_seeds(runner: Runner) -> dict[str, int]:
    """Seeds of the order of images, and of the images."""
    return {name: _seed(part) for name, part in _ordered_by(runner).items()}


def set_order_seeds(runner: Runner, seeds: Mapping[str, int]) -> None:
    """The way back from :func:`order_seeds`."""
    for name, part in _ordered_by(runner).items():
        part.seed = seeds.get(name, part.seed)


def open_gradients(runner: Runner) -> dict[str, Tensor]:
    """Gradients that wait for more batches (``accumulative_counts``), averaged over processes."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict) or wrapper.should_update():
        return {}
    model = getattr(runner.model, "module", runner.model)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if get_world_size() > 1:
        grads = {n: g.clone() for n, g in grads.items()}
        for grad in grads.values():
            all_reduce(grad, "mean")
    return {n: g.detach().cpu() for n, g in grads.items()}


@HOOKS.register_module()
class ResumeHook(Hook):
    """Keeps the random numbers of training apart from what runs between the steps.

    Validation, and whatever else draws random numbers between two steps, leaves no trace in
    training; so it does not matter whether a resumed run repeats it.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None
        self._run = uuid4().hex

    def state(self, runner: Runner) -> dict[str, Any]:
        """What a run needs to go on exactly; every process of a run must ask.

        Args:
            runner: the run.

        Returns:
            ``run`` (the same however often it is resumed), ``random`` (per process),
            ``images_per_step``, ``steps_per_epoch``, ``order`` (seeds per process, which a run
            without ``randomness.seed`` has drawn), ``gradients``; the place in the data is the
            checkpoint's iteration.
        """
        return {
            "run": self._run,
            "random": all_gather_object(self._kept or random_state()),
            "images_per_step": images_per_step(runner),
            "steps_per_epoch": len(runner.train_dataloader),
            "order": all_gather_object(order_seeds(runner)),
            "gradients": open_gradients(runner),
        }

    def restore(self, runner: Runner, state: Mapping[str, Any]) -> None:
        """Go on as :meth:`state` says.

        Args:
            runner: the run; weights, optimiser and counts are loaded.
            state: of the checkpoint.
        """
        self._run = state.get("run", self._run)
        states = state["random"]
        self._kept = states[get_rank() % len(states)]
        if len(states) != get_world_size():
            runner.logger.warning(
                f"the checkpoint is of {len(states)} processes, this run has {get_world_size()}: "
                "it goes on, but not bit for bit"
            )
        orders = state.get("order") or [{}]
        set_order_seeds(runner, orders[get_rank() % len(orders)])
        model = getattr(runner.model, "module", runner.model)
        for name, parameter in model.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device)
        self._fit_place(runner, state["images_per_step"], state["steps_per_epoch"])

    def _fit_place(self, runner: Runner, before: int, steps_before: int) -> None:
        """With another number of images per step, go on after as many images of the epoch."""
        now, loop = images_per_step(runner), runner.train_loop
        steps = len(runner.train_dataloader)
        if (before, steps_before) == (now, steps) or not now or not hasattr(loop, "run_epoch"):
            return
        done = round((loop.iter - loop.epoch * steps_before) * before / now)
        loop._iter = loop.epoch * steps + min(done, steps)
        runner.logger.warning(
            f"the checkpoint is of {before} images per step, this run has {now}: it goes on at "
            f"epoch {loop.epoch + 1}, iteration {loop._iter}, but not bit for bit"
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Go on with training's own random numbers."""
        if self._kept is not None:
            set_random_state(self._kept)
            self._kept = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Put training's random numbers aside."""
        self._keep()

    def before_val(self, runner: Runner) -> None:
        """Put training's random numbers aside."""
        self._keep()

    def _keep(self) -> None:
        if self._kept is None:
            self._kept = random_state()
