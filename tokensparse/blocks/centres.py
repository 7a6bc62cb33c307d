"""Initial centres of semantic tokens, one a region (STViT, arXiv:2303.08685, Sec. 3.2).

Shapes: V windows (over the batch) of w x w places, s x s centres a window, C channels.
"""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


def max_pooled(x: Tensor, valid: Tensor | None, side: int) -> Tensor:
    """Adaptive max pooling (released code); bins overlap where s does not divide w.

    Args:
        x: (V, C, w, w).
        valid: (V, 1, w, w), 0 at padding, or None.
        side: s.

    Returns:
        (V, C, s, s); a bin without a valid place is 0.
    """
    if valid is None:
        return _adaptive_max(x, side)
    low = torch.finfo(x.dtype).min
    pooled = _adaptive_max(x.masked_fill(valid == 0, low), side)
    return pooled.masked_fill(pooled == low, 0.0)


def _adaptive_max(x: Tensor, side: int) -> Tensor:
    """(V, C, h, w) -> (V, C, s, s); by gathered bins in exported graphs: ONNX has no such pool."""
    if not torch.compiler.is_exporting():
        return F.adaptive_max_pool2d(x, side)
    for axis in (2, 3):
        n = x.shape[axis]
        bins = [(i * n // side, -(-(i + 1) * n // side)) for i in range(side)]
        longest = max(end - start for start, end in bins)
        places = [min(start + j, end - 1) for start, end in bins for j in range(longest)]
        index = torch.tensor(places, device=x.device)
        x = x.index_select(axis, index).unflatten(axis, (side, longest)).amax(axis + 1)
    return x


class MaskOffset(nn.Module):
    """Intra-region mask and inter-region offset: the paper's spatial initialisation.

    A light branch (depth-wise convolution, layer norm, GELU, convolution) predicts for every place
    a mask logit and a displacement. A region's displacement is the mean over its places, at most
    one region's size; the region's centre is the mean of the displaced places weighted by the
    softmax of their mask logits.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.point = nn.Conv2d(dim, 3, 1)

    def forward(self, x: Tensor, valid: Tensor | None, side: int) -> Tensor:
        """Centres.

        Args:
            x: (V, C, w, w), 0 at padding.
            valid: (V, 1, w, w), 0 at padding, or None.
            side: s.

        Returns:
            (V, C, s, s).
        """
        if valid is not None:
            x = x * valid.to(x.dtype)
        branch = self.point(F.gelu(self.norm(self.depthwise(x))))
        offset = F.adaptive_avg_pool2d(branch[:, 1:], side).tanh()
        logits = branch[:, :1].float()
        if valid is not None:
            logits = logits.masked_fill(valid == 0, -1.0e4)
        count = -(-max(x.shape[-2:]) // side)
        places = _places(offset.float(), side, count)
        values = F.grid_sample(
            torch.cat([x.float(), logits], 1), places, padding_mode="border", align_corners=False
        )
        values = values.unflatten(2, (side, count)).unflatten(4, (side, count))
        values = values.permute(0, 1, 2, 4, 3, 5).flatten(4)
        weight = values[:, -1:].softmax(-1)
        return (values[:, :-1] * weight).sum(-1).to(x.dtype)

    def macs(self, places: tuple[int, int], side: int) -> int:
        """Of one window: the two convolutions."""
        c = self.depthwise.in_channels
        return places[0] * places[1] * (9 * c + 3 * c)


def _places(offset: Tensor, side: int, count: int) -> Tensor:
    """Sampling places in -1..1, count along a region's side.

    (V, 2, s, s) displacements -> (V, s * count, s * count, 2).
    """
    axis = (torch.arange(side * count, device=offset.device) + 0.5) * (2.0 / (side * count)) - 1.0
    rows, cols = torch.meshgrid(axis, axis, indexing="ij")
    moved = offset.repeat_interleave(count, 2).repeat_interleave(count, 3) * (2.0 / side)
    # the backward pass of grid_sample crashes on a CPU where a place is NaN; its logit stays NaN
    return torch.stack([cols + moved[:, 1], rows + moved[:, 0]], -1).nan_to_num()
