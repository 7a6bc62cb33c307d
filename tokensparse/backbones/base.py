"""What an mm model expects of a backbone, beside its maps."""

from typing import Any

from mmengine.model import BaseModule

from tokensparse.backbones.pretrained import own_reader


class Backbone(BaseModule):
    """Base of our backbones.

    Attributes:
        out_channels: channels of the maps in the order of ``out_indices``; None for
            classification.

    Args:
        init_cfg: mmengine's; type ``Pretrained`` reads every family of released weights, see
            :class:`tokensparse.backbones.pretrained.Pretrained`.
    """

    out_channels: tuple[int, ...] | None = None

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__(own_reader(init_cfg))
