"""Boundary quality of masks, on shapes whose bands can be counted by hand."""

import numpy as np
import pytest

from tokensparse.dense.boundary import boundary, boundary_iou, mask_iou


def square(top: int, left: int, side: int = 6) -> np.ndarray:
    mask = np.zeros((12, 12), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(("pixels", "inside"), [(1, 16), (2, 4), (3, 0), (9, 0)])
def test_the_band_of_a_square(pixels: int, inside: int) -> None:
    mask = square(3, 3)
    band = boundary(mask, pixels)
    assert band.sum() == 36 - inside and not (band & ~mask).any()


def test_beyond_the_image_is_outside() -> None:
    everything = np.ones((5, 5), dtype=bool)
    assert boundary(everything, 1).sum() == 16


def test_boundary_iou_sees_what_mask_iou_forgives() -> None:
    true = square(3, 3)
    assert boundary_iou(true, true, 1) == mask_iou(true, true) == 1.0
    shifted = square(3, 4)
    assert mask_iou(shifted, true) == 30 / 42
    assert boundary_iou(shifted, true, 1) == 10 / 30  # two rows of five in common, of 20 + 20
    assert boundary_iou(shifted, true, 1) < mask_iou(shifted, true)
    empty = np.zeros_like(true)
    assert boundary_iou(empty, true) == 0.0 and boundary_iou(empty, empty) == 1.0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="pixels 0"):
        boundary(square(0, 0), 0)
    with pytest.raises(ValueError, match=r"\(12,\)"):
        boundary(square(0, 0)[0])
