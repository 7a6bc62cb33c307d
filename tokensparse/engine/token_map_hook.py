"""Pictures of the token steps while a model trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from tokensparse.analysis.token_maps import patch_maps
from tokensparse.analysis.token_pictures import depth_figure, pixels_of, png_of, write_whole
from tokensparse.engine.randomness import kept_randomness
from tokensparse.registry import HOOKS


@HOOKS.register_module()
class TokenMapHook(Hook):
    """Draw what became of the patches of a few validation images, after every validation.

    The strip over all steps goes to the visualizer's backends (TensorBoard) as
    ``token_maps/<image>``, and to ``token_maps/`` beside the log, as ``<image>_epoch-<n>.png`` (or
    ``_iteration-<n>``).
    Only the first process draws; random numbers stay as they were.

    Args:
        num_images: how many, evenly spread over the validation data.
        interval: draw after every ``interval``-th validation.
    """

    priority = "LOW"

    def __init__(self, num_images: int = 4, interval: int = 1) -> None:
        for name, value in (("num_images", num_images), ("interval", interval)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"TokenMapHook: {name}={value!r}; expected an int >= 1")
        self.num_images = num_images
        self.interval = interval
        self._validations = 0
        self._training = False

    def before_train(self, runner: Runner) -> None:
        """Refuse what could never be drawn.

        Raises:
            ValueError: no validation, or a backbone without token steps.
        """
        if runner.val_loop is None:
            raise ValueError("TokenMapHook draws validation images, but there is no val_dataloader")
        backbone = _backbone(runner)
        if not hasattr(backbone, "forward_tokens") or not len(backbone.plan.steps):
            raise ValueError(
                f"TokenMapHook: {type(backbone).__name__} has no token steps to draw; leave the "
                "hook out, or give the backbone a plan"
            )
        self._training = True

    def after_train(self, runner: Runner) -> None:
        """Draw no more."""
        self._training = False

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Draw, while a model trains."""
        self._validations += 1
        due = self._training and self._validations % self.interval == 0
        if not due or not is_main_process():
            return
        folder = Path(runner.log_dir, "token_maps")
        folder.mkdir(parents=True, exist_ok=True)
        loader = runner.val_loop.dataloader
        count = min(self.num_images, len(loader.dataset))
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop)
        done = f"iteration-{runner.iter}" if by_iteration else f"epoch-{runner.epoch}"
        for index in (len(loader.dataset) * i // count for i in range(count)):
            with kept_randomness():
                batch = loader.collate_fn([loader.dataset[index]])
            title = f"validation image {index}, {done.replace('-', ' ')}"
            picture = _drawn(runner, batch, title)
            runner.visualizer.add_image(f"token_maps/{index}", pixels_of(picture), runner.iter)
            write_whole(png_of(picture), folder / f"{index}_{done}.png")


def _backbone(runner: Runner) -> Any:
    model = getattr(runner.model, "module", runner.model)
    return getattr(model, "backbone", model)


@torch.no_grad()
def _drawn(runner: Runner, batch: Any, title: str) -> Any:
    """The strip of one image, as a figure."""
    model, backbone = getattr(runner.model, "module", runner.model), _backbone(runner)
    training = [m for m in backbone.modules() if m.training]
    backbone.eval()
    try:
        inputs = model.data_preprocessor(batch, False)["inputs"]
        _, trace = backbone.forward_tokens(inputs, collect=frozenset({"maps"}))
    finally:
        for module in training:
            module.training = True
    pixels = shown(inputs[0], model.data_preprocessor)
    size = f"{pixels.shape[0]} x {pixels.shape[1]} px"
    title = f"{runner.experiment_name}\n{title}, {size}"
    return depth_figure(patch_maps(trace), pixels, backbone.stem.stride, title)


def shown(x: Tensor, preprocessor: nn.Module) -> np.ndarray:
    """An input of a model as a picture.

    Args:
        x: (3, h, w), normalised.
        preprocessor: ``mean`` and ``std`` by which it was; mm's leave blue first unless told to
            turn channels.

    Returns:
        (h, w, 3) uint8, RGB.
    """
    x = x.float().cpu()
    for name, combine in (("std", torch.mul), ("mean", torch.add)):
        value = getattr(preprocessor, name, None)
        if value is not None:
            x = combine(x, value.detach().cpu().view(-1, 1, 1))
    if not getattr(preprocessor, "_channel_conversion", True):
        x = x.flip(0)
    pixels: np.ndarray = x.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels[..., :1], 3, 2)
