"""Start a backbone from released weights: what fits is taken, the rest keeps its values."""

import logging
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn
from torchvision.models import get_weight

from tokensparse.registry import WEIGHT_INITIALIZERS
from tokensparse.released import load_released

SCRATCH = "to start from scratch set model.backbone.init_cfg=None"


@WEIGHT_INITIALIZERS.register_module()
class ReleasedInit:
    """``init_cfg`` of a backbone: weights that :func:`tokensparse.load_released` can read.

    Args:
        kind: whose weights, as in ``load_released``: ``torchvision-swin``, ``timm-vit`` ...
        weights: path of a file, or the name of a torchvision weights entry, which torchvision
            fetches and keeps.
        prefixes: only parameters whose name (ours) begins with one of these.
        min_share: least share of the backbone's parameters that must be found; less is a mistake.

    Raises:
        ValueError: too little fits.
        FileNotFoundError: neither a file nor a name that torchvision knows.
    """

    def __init__(
        self, kind: str, weights: str, prefixes: Sequence[str] = ("",), min_share: float = 0.2
    ) -> None:
        self.kind = kind
        self.weights = weights
        self.prefixes = tuple(prefixes)
        self.min_share = min_share

    def __call__(self, module: nn.Module) -> None:
        """Overwrite the parameters of ``module`` whose name and shape are found."""
        released = load_released(self.kind, self._read())
        source = getattr(released, "backbone", released).state_dict()
        source = {k: v for k, v in source.items() if k.startswith(self.prefixes)}
        copy_fitting(source, module, self.min_share, self.weights)

    def _read(self) -> str | dict[str, Tensor]:
        if Path(self.weights).is_file():
            return self.weights
        try:
            entry = get_weight(self.weights)
        except (ValueError, AttributeError) as error:
            raise FileNotFoundError(
                f"init_cfg: weights={self.weights!r} is neither a file (looked for "
                f"{Path(self.weights).resolve()}) nor a name that torchvision knows; {SCRATCH}"
            ) from error
        try:
            state: dict[str, Tensor] = entry.get_state_dict(check_hash=True, weights_only=True)
        except OSError as error:
            raise FileNotFoundError(
                f"init_cfg: {self.weights} could not be fetched from {entry.url} ({error}); fetch "
                f"it by hand and set model.backbone.init_cfg.weights to its path; {SCRATCH}"
            ) from error
        return state


def copy_fitting(
    source: dict[str, Tensor], module: nn.Module, min_share: float, name: str
) -> list[str]:
    """Copy parameters by name and shape.

    Args:
        source: state dict in our names.
        module: what is overwritten.
        min_share: least share of its parameters.
        name: of the source, for messages.

    Returns:
        Names that kept their initialisation.

    Raises:
        ValueError: less than ``min_share`` fits.
    """
    own = module.state_dict()
    fitting = {k: v for k, v in source.items() if k in own and own[k].shape == v.shape}
    share = sum(v.numel() for v in fitting.values()) / max(sum(v.numel() for v in own.values()), 1)
    if share < min_share:
        raise ValueError(
            f"init_cfg: only {share:.0%} of the backbone's parameters are in {name}; are its sizes "
            "those of this backbone? Else set model.backbone.init_cfg=None"
        )
    module.load_state_dict(fitting, strict=False)
    left = [k for k in own if k not in fitting]
    print_log(
        f"{share:.0%} of the backbone from {name}; not in it: {left}", "current", logging.INFO
    )
    return left
