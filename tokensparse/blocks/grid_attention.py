"""Self-attention over all tokens of a grid, with a learned bias for every offset.

An option of the released STViT-R (``relative_pos``): the table of a Swin window, over the whole
semantic grid. Shapes: H x W grid, h heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensparse.blocks.attention import AttentionInputs, SetAttention
from tokensparse.ops.attention import Form

Grid = tuple[int, int]


class GridAttention(SetAttention):
    """:class:`SetAttention` plus a bias per offset and head.

    Args:
        dim: C.
        num_heads: h, divides C.
        grid: (H, W) that the table is made for; on another grid it is resized (bicubic).
        qkv_bias: bias on the query, key and value projection.
        attention: form of attention, see ``ops.attention.attend``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        qkv_bias: bool = True,
        attention: Form | str = "auto",
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attention)
        self.grid = grid
        offsets = torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(offsets, std=0.02))

    def logit_bias(self, given: AttentionInputs) -> Tensor | None:
        """(B or 1, h, H W, H W), added to the logits.

        Raises:
            ValueError: the tokens tile no grid.
        """
        if given.grid is None:
            raise ValueError("a position bias needs tokens on a grid: leave relative_pos out")
        height, width = given.grid
        table = resize_offsets(self.relative_position_bias_table, self.grid, given.grid)
        index = offset_index(height, width, table.device)
        bias = F.embedding(index, table).permute(2, 0, 1)[None]
        hidden = super().logit_bias(given)
        return bias if hidden is None else bias + hidden


def offset_index(height: int, width: int, device: torch.device) -> Tensor:
    """(H W, H W): row of the table for every pair (query place, key place)."""
    place = torch.arange(height * width, device=device)
    row, col = place // width, place % width
    rows = row[:, None] - row[None, :] + height - 1
    cols = col[:, None] - col[None, :] + width - 1
    return rows * (2 * width - 1) + cols


def resize_offsets(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize a table of offsets: ((2 H_old - 1)(2 W_old - 1), h) -> ((2 H - 1)(2 W - 1), h)."""
    if old == new:
        return table
    image = table.float().t().unflatten(1, (2 * old[0] - 1, 2 * old[1] - 1)).unsqueeze(0)
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    image = F.interpolate(image, size=size, mode="bicubic", align_corners=False)
    return image[0].flatten(1).t().to(table.dtype)
