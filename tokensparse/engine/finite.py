"""Losses and gradients that are not finite: no step is taken, the batch is named, the run ends.

A loss that is not finite makes every gradient NaN, which data-parallel training carries to all
processes: they all see it, and none takes the step. Looking costs one number read from the device
per step: the norm of the gradients, or nothing where ``clip_grad`` has just read it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from tokensparse.engine.bad_images import image_name
from tokensparse.registry import HOOKS


class NotFiniteError(ValueError):
    """A loss, a gradient or a weight is NaN or infinite."""


def losses_of(outputs: Any) -> dict[str, Tensor]:
    """What a model's loss dict adds up to per entry; entries without ``loss`` in the name are not.

    Args:
        outputs: what a model gave; only dicts have losses.
    """
    if not isinstance(outputs, Mapping):
        return {}
    sums = {}
    for name, value in outputs.items():
        parts = [v for v in (value if isinstance(value, (list, tuple)) else [value])
                 if isinstance(v, Tensor)]  # fmt: skip
        if "loss" in name and parts:
            sums[name] = sum(v.detach().float().mean() for v in parts)
    return sums


def poisoned(outputs: Mapping[str, Any], total: Tensor) -> dict[str, Any]:
    """The same losses, times 1, or times NaN where their total is not finite.

    Args:
        outputs: a model's loss dict.
        total: the sum of its losses, a scalar without gradient.
    """
    factor = total * 0 + 1

    def times(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [times(v) for v in value]
        return value * factor.to(value.dtype) if isinstance(value, Tensor) else value

    return {k: times(v) if "loss" in k else v for k, v in outputs.items()}


class BeforeClipping:
    """Calls a function before a wrapper clips its gradients, until it is removed.

    Args:
        wrapper: of an optimiser.
        look: called without arguments.
    """

    def __init__(self, wrapper: OptimWrapper, look: Callable[[], Any]) -> None:
        self.wrapper, clip = wrapper, wrapper._clip_grad

        def looked_at() -> None:
            look()
            clip()

        wrapper._clip_grad = looked_at

    def remove(self) -> None:
        """Clip without looking."""
        self.wrapper.__dict__.pop("_clip_grad", None)


@HOOKS.register_module()
class FiniteHook(Hook):
    """Ends a run before a step that is not finite, and before a checkpoint that is not."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._since_step: list[tuple[dict[str, Tensor], list[str]]] = []
        self._images: list[str] = []
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Look at the model's losses, and at the gradients before each step."""
        model = getattr(runner.model, "module", runner.model)
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        self.release(runner)
        self._handles = [model.register_forward_hook(self._see_losses)]
        for each in wrappers:

            def look(optimizer: Any, *_: Any, own: OptimWrapper = each) -> None:
                self._check_step(runner, own)

            self._handles.append(each.optimizer.register_step_pre_hook(look))
            clip = each.clip_grad_kwargs
            if clip and (each.grad_name != "grad_norm" or clip.get("error_if_nonfinite")):
                self._handles.append(BeforeClipping(each, lambda own=each: self._look(runner, own)))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember which images the batch holds."""
        loader = runner.train_dataloader
        self._images = [(loader.dataset, i) for i in getattr(loader, "indices", [])]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Where a gradient scaler left the step out, look at the loss itself."""
        wrapper = runner.optim_wrapper
        if hasattr(wrapper, "loss_scaler") and wrapper.should_update() and self._since_step:
            self._check_losses(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Save no weights that are not finite: the checkpoint before them stays the newest."""
        model = getattr(runner.model, "module", runner.model)
        waiting = checkpoint.get("meta", {}).get("resume", {}).get("gradients", {})
        if not all(torch.isfinite(grad).all() for grad in waiting.values()):
            self._end(runner, "a gradient that waits for more batches is not finite", False)
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight.detach()).all():
                raise NotFiniteError(
                    f"weight {name} is not finite at iteration {runner.iter}; no checkpoint was "
                    f"written over the last good one. {REMEDY}"
                )

    def release(self, runner: Runner) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._since_step = [], []

    def _see_losses(self, model: nn.Module, inputs: Any, outputs: Any) -> Any:
        sums = losses_of(outputs) if model.training and torch.is_grad_enabled() else {}
        if not sums:
            return None
        self._since_step.append((sums, self._images))
        return poisoned(outputs, sum(sums.values()))

    def _check_step(self, runner: Runner, wrapper: OptimWrapper) -> None:
        """Raise where the gradients are not finite; every process comes to the same end."""
        if hasattr(wrapper, "loss_scaler"):  # it leaves such steps out, and finds its scale by them
            return
        clipped = wrapper.clip_grad_kwargs and wrapper.grad_name == "grad_norm"
        if clipped:
            norm = wrapper.message_hub.get_scalar("train/grad_norm").current()
            self._check_norm(runner, torch.as_tensor(norm))
        else:
            self._look(runner, wrapper)
        self._since_step.clear()

    def _look(self, runner: Runner, wrapper: OptimWrapper) -> None:
        """Raise where the gradients themselves are not finite."""
        groups = wrapper.optimizer.param_groups
        grads = [p.grad for g in groups for p in g["params"] if p.grad is not None]
        if not hasattr(wrapper, "loss_scaler"):
            self._check_norm(runner, torch.nn.utils.get_total_norm(grads))

    def _check_norm(self, runner: Runner, norm: Tensor) -> None:
        if not torch.isfinite(norm).item():
            self._end(runner, f"the norm of the gradients is {float(norm):g}")

    def _check_losses(self, runner: Runner) -> None:
        total = sum(sum(sums.values()) for sums, _ in self._since_step)
        if torch.isfinite(total).item():
            self._since_step.clear()
        else:
            self._end(runner, "the loss is not finite")

    def _end(self, runner: Runner, what: str, gather: bool = True) -> None:
        mine = []
        for sums, images in self._since_step:
            values = {k: float(v) for k, v in sums.items()}
            bad = not all(torch.isfinite(v).item() for v in sums.values())
            mine.append((bad, values, [image_name(d, i) for d, i in images], get_rank()))
        ranks = all_gather_object(mine) if gather else [mine]
        batches = [batch for of_rank in ranks for batch in of_rank]
        guilty = [b for b in batches if b[0]] or batches
        lines = [
            f"  process {rank}: {', '.join(f'{k} {v:g}' for k, v in values.items())}; "
            + (", ".join(images) or "images unknown")
            for _, values, images, rank in guilty
        ]
        raise NotFiniteError(
            f"iteration {runner.iter + 1}: {what}. The step was not taken; the last checkpoint is "
            "untouched. Batches since the last step"
            + (" whose loss is not finite" if any(b[0] for b in batches) else "")
            + ":\n"
            + "\n".join(lines)
            + f"\n{REMEDY}"
        )


REMEDY = (
    "Look at these images, or go on from an earlier checkpoint (--resume <file>) with a lower "
    "learning rate, clip_grad=dict(max_norm=1.0), or optim_wrapper.precision=fp32"
)
