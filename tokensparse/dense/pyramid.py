"""Levels of a pyramid for heads, from the one map of a plain ViT.

Shape letters: B batch, C channels, H W the map of the last block, at the stride of a patch.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from tokensparse.registry import MODELS

#: Ways from the map of a plain ViT to a level: levels as multiples of the map's size.
SCALES = (4.0, 2.0, 1.0, 0.5)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Simple feature pyramid (ViTDet, arXiv:2203.16527, Sec. 3): every level from the last map.

    Levels at 4, 2, 1 and 1/2 times the map's size, made by strided transposed convolutions and max
    pooling; then a 1 x 1 and a 3 x 3 convolution, each with a layer norm. For a patch of 16 pixels
    that is strides 4, 8, 16 and 32. It takes the place of mmdet's ``FPN`` as ``neck``.

    Args:
        in_channels: C of the backbone's last map.
        out_channels: channels of every level.
        num_outs: levels; beyond those of ``scales``, max pooling with stride 2 of the last one.
        scales: sizes of the levels as multiples of the map's: 4, 2, 1 or 0.5, from large to small.
        init_cfg: mmengine's.

    Raises:
        ValueError: a scale that is none of these, or fewer outputs than scales.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        scales: Sequence[float] = SCALES,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not scales or any(s not in SCALES for s in scales) or list(scales) != _falling(scales):
            raise ValueError(
                f"scales={tuple(scales)}; expected different ones of {SCALES}, from large to small"
            )
        if num_outs < len(scales):
            raise ValueError(
                f"num_outs={num_outs}, but scales={tuple(scales)} make {len(scales)} levels; "
                "name fewer scales"
            )
        if not isinstance(in_channels, int):
            raise ValueError(
                f"in_channels={in_channels!r}; expected one number: every level comes from the "
                "backbone's last map"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.levels = nn.ModuleList(_level(s, in_channels, out_channels) for s in scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels.

        Args:
            maps: of the backbone; only the last (B, C, H, W) is read.

        Returns:
            ``num_outs`` maps (B, out_channels, s H, s W), s the scale.

        Raises:
            ValueError: the last map has other channels than ``in_channels``.
        """
        last = maps[-1]
        if last.ndim != 4 or last.shape[1] != self.in_channels:
            raise ValueError(
                f"neck.in_channels={self.in_channels}, but the backbone's last output is "
                f"{tuple(last.shape)}; expected (B, {self.in_channels}, H, W)"
            )
        outs = [level(last) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def _falling(scales: Sequence[float]) -> list[float]:
    return sorted(set(scales), reverse=True)


def _level(scale: float, dim: int, out: int) -> nn.Sequential:
    """From the map to one level."""
    layers: list[nn.Module] = []
    if scale == 4:
        half = dim // 2
        layers += [nn.ConvTranspose2d(dim, half, 2, stride=2), ChannelNorm(half, eps=1e-6)]
        layers += [nn.GELU(), nn.ConvTranspose2d(half, dim // 4, 2, stride=2)]
        dim = dim // 4
    elif scale == 2:
        layers.append(nn.ConvTranspose2d(dim, dim // 2, 2, stride=2))
        dim = dim // 2
    elif scale == 0.5:
        layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
    layers += [nn.Conv2d(dim, out, 1, bias=False), ChannelNorm(out, eps=1e-6)]
    layers += [nn.Conv2d(out, out, 3, padding=1, bias=False), ChannelNorm(out, eps=1e-6)]
    return nn.Sequential(*layers)
