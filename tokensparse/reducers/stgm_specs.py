"""What the three specifications of STGM fix (STViT, arXiv:2303.08685, Sec. 3.2 and released code).

====================  ==================  ==================  ========================
what                  paper               released-cls        released-det
====================  ==================  ==================  ========================
initial centres P     mask and offset     max pooling         max pooling
layer 1, keys         [P; 10 x 10 of X]   [P; 10 x 10 of X]   14 x 14 of X, over border
layer 1, residual     P                   none (shortcut: P)  P
layer 2, keys         [S; X], all         [S; X], all         21 x 21 of X, over border
learned centres G     yes                 option              no
LayerScale            no                  1e-5                1e-5
====================  ==================  ==================  ========================
"""

from typing import Literal, NamedTuple

Spec = Literal["paper", "released-cls", "released-det"]


class Choices(NamedTuple):
    """What a specification fixes, unless said otherwise; see the table above."""

    init: Literal["mask_offset", "max_pool"]
    centres: bool
    shortcut: bool
    layer_scale: float | None
    side1: int
    side2: int | None


SPECS: dict[str, Choices] = {
    "paper": Choices("mask_offset", True, True, None, 10, None),
    "released-cls": Choices("max_pool", False, False, 1e-5, 10, None),
    "released-det": Choices("max_pool", False, True, 1e-5, 14, 21),
}
