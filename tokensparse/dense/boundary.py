"""How well masks follow outlines: the boundary IoU of Cheng et al. (arXiv:2103.16562, Sec. 4)."""

import numpy as np


def boundary(mask: np.ndarray, pixels: int = 2) -> np.ndarray:
    """The inner band of a mask: its pixels at most ``pixels`` away from what lies outside.

    Args:
        mask: (H, W) booleans; beyond the image counts as outside.
        pixels: width of the band, in steps to one of the four neighbours.

    Returns:
        (H, W) booleans.

    Raises:
        ValueError: ``mask`` is no (H, W) array, or ``pixels`` is less than one.
    """
    if mask.ndim != 2 or pixels < 1:
        raise ValueError(f"boundary: mask {mask.shape}, pixels {pixels}; (H, W) and at least 1")
    inner = np.pad(mask.astype(bool), 1)
    for _ in range(pixels):
        shrunk = inner.copy()
        shrunk[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2]
        shrunk[1:-1, 1:-1] &= inner[1:-1, 2:]
        inner = shrunk
    return mask.astype(bool) & ~inner[1:-1, 1:-1]


def boundary_iou(predicted: np.ndarray, true: np.ndarray, pixels: int = 2) -> float:
    """Intersection over union of two masks' inner bands.

    Args:
        predicted: (H, W) booleans.
        true: (H, W) booleans.
        pixels: width of the bands; the paper takes 2 % of an image's diagonal.

    Returns:
        0 to 1; 1 where both masks are empty.
    """
    a, b = boundary(predicted, pixels), boundary(true, pixels)
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def mask_iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of two masks (H, W); 1 where both are empty."""
    union = int((predicted | true).sum())
    return int((predicted & true).sum()) / union if union else 1.0
