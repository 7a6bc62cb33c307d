"""Learning rates that fall with depth: ``constructor='tokensparse.LayerDecay'``.

As fine-tuning of BEiT and MAE does it (arXiv:2106.08254, App. A; arXiv:2111.06377, App. A.1).
"""

import re
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from tokensparse.registry import OPTIM_WRAPPER_CONSTRUCTORS

_STEM = ("stem", "cls_token", "dist_token", "reg_token", "pos_embed", "mask_token")
_PART = re.compile(r"stages\.(\d+)\.(?:blocks\.(\d+)|transition)\b")
_STEP = re.compile(r"plan\.steps\.(\d+)\b")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay(DefaultOptimWrapperConstructor):
    """Multiply the learning rate of layer i of L by ``layer_decay ** (L + 1 - i)``.

    The stem with class token and positions is layer 0, the blocks of our ViT and Swin are layers
    1..L through all stages, and what follows them (last norm, heads) is layer L + 1, at the full
    rate. Patch merging counts with the block before it, the parts of a token plan with the block
    at which their step opens. ``norm_decay_mult``, ``custom_keys`` and so on work as in mmengine's
    constructor; factors are multiplied.

    Args:
        optim_wrapper_cfg: settings of wrapper and optimiser.
        paramwise_cfg: ``layer_decay`` in (0, 1], and mmengine's own keys.

    Raises:
        ValueError: no ``layer_decay``, one out of range, or a model without a backbone of ours.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        settings = {"bypass_duplicate": False, **(paramwise_cfg or {})}
        decay = settings.pop("layer_decay", None)
        if not isinstance(decay, (int, float)) or not 0 < decay <= 1:
            raise ValueError(
                f"optim_wrapper.paramwise_cfg.layer_decay={decay!r}; expected a number in (0, 1], "
                "such as 0.65 for a ViT of 12 blocks"
            )
        self.layer_decay = float(decay)
        super().__init__(optim_wrapper_cfg, settings)

    def __call__(self, model: nn.Module) -> Any:
        """Build the wrapper for a model."""
        inner = getattr(model, "module", model)
        found = [(n, m) for n, m in inner.named_modules() if _is_ours(m)]
        if not found:
            raise ValueError(
                "optim_wrapper.constructor: tokensparse.LayerDecay needs a backbone of tokensparse "
                f"in the model; {type(inner).__name__} has none"
            )
        name, backbone = found[0]
        prefix = f"{name}." if name else ""
        total = sum(len(stage.blocks) for stage in backbone.stages)
        self._factors = {
            id(parameter): self.layer_decay
            ** (total + 1 - _layer(own.removeprefix(prefix), own.startswith(prefix), backbone))
            for own, parameter in inner.named_parameters()
        }
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Mmengine's groups, one a parameter; each gets its layer's factor once."""
        start = len(params)
        super().add_params(params, module, **kwargs)
        if kwargs.get("prefix"):  # an inner call of the recursion
            return
        for group in params[start:]:
            (factor,) = {self._factors[id(p)] for p in group["params"]}
            group["lr"] = group.get("lr", self.base_lr) * factor


def _is_ours(module: nn.Module) -> bool:
    return hasattr(module, "stages") and hasattr(module, "plan") and hasattr(module, "stem")


def _layer(name: str, inside: bool, backbone: Any) -> int:
    """Layer of a parameter: 0..L + 1."""
    before = [0]
    for stage in backbone.stages:
        before.append(before[-1] + len(stage.blocks))
    if not inside:
        return before[-1] + 1
    if name.startswith(_STEM):
        return 0
    part, step = _PART.match(name), _STEP.match(name)
    if part and part[2] is not None:
        return before[int(part[1])] + int(part[2]) + 1
    if part:
        return before[int(part[1])]
    if step:
        opened = backbone.plan.steps[int(step[1])]
        return min(before[opened.stage] + opened.first + 1, before[-1])
    return before[-1] + 1
