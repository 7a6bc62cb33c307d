"""Photographs that tools/visualize.py reads."""

from pathlib import Path

import numpy as np
from PIL import Image
from small import tool_of


def test_photographs_are_read_as_they_were_meant(tmp_path: Path) -> None:
    """Turned by the camera's note; 16 bits of grey keep their range."""
    tool = tool_of("visualize")
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    note = Image.Exif()
    note[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=note)
    deep = (np.arange(24, dtype=np.uint16) * 2800).reshape(4, 6)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    turned, grey = tool.read_images([str(tmp_path / n) for n in ("turned.png", "deep.png")])
    assert turned.image.size == (6, 4)
    assert (np.asarray(grey.image)[..., 0] == deep // 257).all()
