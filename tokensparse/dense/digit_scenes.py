"""DigitScenes: real handwritten digits composed into scenes with boxes, masks and semantic maps.

The digits are scikit-learn's (8 x 8, 16 grey levels); those of training and validation scenes are
disjoint. A scene depends on nothing but the seed, the split and its number. Scenes are written
once, as COCO JSON, PNG images and PNG semantic maps, and read by mmdet's and mmseg's data sets.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

#: Changes whenever the same seed gives other scenes.
VERSION = 2
CLASSES = tuple(str(digit) for digit in range(10))
SEMANTIC_CLASSES = ("background", *CLASSES)
SPLITS = ("train", "val")

MIN_SIDE, MAX_SIDE = 16, 80
MIN_DIGITS, MAX_DIGITS = 3, 9
MAX_IOU = 0.3
#: Least part of a digit that later ones leave visible.
MIN_VISIBLE = 0.4


@dataclass(frozen=True)
class SceneSettings:
    """What the scenes depend on.

    Attributes:
        train: training scenes.
        val: validation scenes.
        size: side of a scene in pixels.
        seed: of everything random.
        version: of this generator.
    """

    train: int = 2000
    val: int = 200
    size: int = 192
    seed: int = 0
    version: int = VERSION


class Scene(NamedTuple):
    """One scene.

    Attributes:
        image: (size, size, 3) uint8.
        labels: class of every digit.
        masks: (digits, size, size) booleans, what is visible of each; they never overlap.
    """

    image: np.ndarray
    labels: list[int]
    masks: np.ndarray

    @property
    def semantic(self) -> np.ndarray:
        """(size, size) uint8: 0 is background, else the class plus 1."""
        label_map = np.zeros(self.image.shape[:2], np.uint8)
        for label, mask in zip(self.labels, self.masks, strict=True):
            label_map[mask] = label + 1
        return label_map


@cache
def digits_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits (images, 8, 8) in 0..1 and their classes; the splits share none."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    index = np.arange(len(labels))
    parts = train_test_split(index, test_size=360, random_state=0, stratify=labels)
    index = parts[SPLITS.index(split)]
    return images[index].reshape(-1, 8, 8) / 16.0, labels[index]


def make_scene(settings: SceneSettings, split: str, number: int) -> Scene:
    """Compose one scene.

    Args:
        settings: of the data set.
        split: ``train`` or ``val``.
        number: of the scene in its split.
    """
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), number])
    size = settings.size
    canvas = _background(rng, size)
    _clutter(rng, canvas, split)
    images, classes = digits_of(split)
    wanted = int(rng.integers(MIN_DIGITS, MAX_DIGITS + 1))
    labels: list[int] = []
    full: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    for attempt in range(40 * wanted):
        if len(labels) == wanted:
            break
        # a crowded scene gets small digits, so that every scene has its number
        largest = MAX_SIDE if attempt < 20 * wanted else 2 * MIN_SIDE
        chosen = int(rng.integers(len(classes)))
        side = int(rng.integers(MIN_SIDE, min(largest, size // 2) + 1))
        alpha = _turned(rng, images[chosen], side)
        mask, layer = _placed(rng, alpha, size)
        if not _fits(mask, full, visible):
            continue
        canvas = _painted(rng, canvas, layer)
        visible = [old & ~mask for old in visible]
        labels.append(int(classes[chosen]))
        full.append(mask)
        visible.append(mask.copy())
    noise = rng.normal(0.0, 0.02, canvas.shape)
    image = np.round(np.clip(canvas + noise, 0, 1) * 255).astype(np.uint8)
    return Scene(image, labels, np.stack(visible))


def _turned(rng: np.random.Generator, digit: np.ndarray, side: int) -> np.ndarray:
    """Opacity of a digit enlarged, turned by up to 30 degrees; its longer side is ``side``."""
    picture = Image.fromarray((digit * 255).astype(np.uint8)).resize((128, 128), Image.BICUBIC)
    picture = Image.fromarray(np.pad(np.asarray(picture), 40))
    picture = picture.rotate(float(rng.uniform(-30, 30)), Image.BICUBIC)
    rows, cols = np.nonzero(np.asarray(picture) > 127)
    box = (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    picture = picture.crop(tuple(int(edge) for edge in box))
    scale = side / max(picture.size)
    new = [max(3, round(edge * scale)) for edge in picture.size]
    soft = np.asarray(picture.resize((new[0], new[1]), Image.BOX), np.float64) / 255
    return np.clip((soft - 0.3) / 0.4, 0, 1)  # pen strokes have edges


def _placed(
    rng: np.random.Generator, alpha: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and opacity (size, size) of a digit somewhere inside the scene."""
    top = int(rng.integers(size - alpha.shape[0] + 1))
    left = int(rng.integers(size - alpha.shape[1] + 1))
    layer = np.zeros((size, size))
    layer[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
    return layer > 0.5, layer


def _fits(mask: np.ndarray, full: list[np.ndarray], visible: list[np.ndarray]) -> bool:
    """Whether boxes overlap little enough and enough of the earlier digits stays visible."""
    own = box_of(mask)
    if not mask.any() or max(own[2:]) < MIN_SIDE - 1:
        return False
    for whole, left in zip(full, visible, strict=True):
        if iou(own, box_of(whole)) > MAX_IOU:
            return False
        if (left & ~mask).sum() < MIN_VISIBLE * whole.sum():
            return False
    return True


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the smallest box around a mask; zeros where it is empty."""
    rows, cols = np.nonzero(mask)
    if not len(rows):
        return 0, 0, 0, 0
    left, top = int(cols.min()), int(rows.min())
    return left, top, int(cols.max()) + 1 - left, int(rows.max()) + 1 - top


def iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over union of two (left, top, width, height) boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def _painted(rng: np.random.Generator, canvas: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """The canvas with a digit over it, light as chalk: tinted, and lighter than what is behind."""
    behind = canvas[layer > 0.5].mean()
    colour = rng.uniform(0.6, 1, 3)
    colour *= max(1.0, (behind + 0.25) / colour.mean())
    colour = np.clip(colour, 0, 1)
    painted: np.ndarray = canvas * (1 - layer[..., None]) + colour * layer[..., None]
    return painted


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth random texture (size, size, 3) in 0..1, dark as a board."""
    layers = []
    for cells, strength in ((4, 0.35), (16, 0.12)):
        coarse = (rng.uniform(0, 1, (cells, cells, 3)) * 255).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((size, size), Image.BICUBIC)
        layers.append(strength * (np.asarray(smooth, np.float64) / 255 - 0.5))
    texture: np.ndarray = np.clip(rng.uniform(0.1, 0.45, 3) + sum(layers), 0, 1)
    return texture


def _clutter(rng: np.random.Generator, canvas: np.ndarray, split: str) -> None:
    """Lines, ellipses and scraps of digits, which are nothing to be found."""
    size = canvas.shape[0]
    picture = Image.fromarray((canvas * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 11))):
        ends = rng.integers(0, size, 4).tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        if rng.uniform() < 0.6:
            draw.line(ends, colour, int(rng.integers(1, 4)))
        else:
            reach = rng.integers(3, max(4, size // 8), 2).tolist()
            box = [ends[0], ends[1], ends[0] + reach[0], ends[1] + reach[1]]
            draw.ellipse(box, outline=colour, width=int(rng.integers(1, 4)))
    images, _ = digits_of(split)
    canvas[:] = np.asarray(picture, np.float64) / 255
    for _ in range(int(rng.integers(2, 6))):
        scrap = _turned(rng, images[int(rng.integers(len(images)))], int(rng.integers(12, 40)))
        rows, cols = (max(2, side // 3) for side in scrap.shape)
        _, layer = _placed(rng, scrap[:rows, :cols], size)
        canvas[:] = _painted(rng, canvas, layer) if (layer > 0.5).any() else canvas


def ensure_scenes(root: str | Path, settings: SceneSettings | None = None) -> Path:
    """Write the scenes unless they are there: whole or not at all.

    Args:
        root: folder of the data set.
        settings: of the scenes.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else, or scenes of other settings.
    """
    root, settings = Path(root), settings or SceneSettings()
    if root.exists():
        _check(root, settings)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for split in SPLITS:
            write_split(partial, settings, split)
        (partial / "scenes.json").write_text(json.dumps(asdict(settings)) + "\n")
        partial.chmod(0o755)
        try:
            os.rename(partial, root)
        except OSError:  # another process was faster
            _check(root, settings)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _check(root: Path, settings: SceneSettings) -> None:
    marker = root / "scenes.json"
    if not marker.is_file():
        raise ValueError(
            f"data_root={str(root)!r} exists, but is no folder of DigitScenes (no scenes.json); "
            "choose another data_root"
        )
    found, wanted = json.loads(marker.read_text()), asdict(settings)
    other = [f"{k}={found.get(k)!r}, wanted {v!r}" for k, v in wanted.items() if found.get(k) != v]
    if other:
        raise ValueError(
            f"data_root={str(root)!r} holds other scenes ({'; '.join(other)}); choose another "
            "data_root, or remove the folder to have them written anew"
        )


def write_split(root: Path, settings: SceneSettings, split: str) -> None:
    """Write images, semantic maps and COCO annotations of one split.

    Args:
        root: existing folder.
        settings: of the scenes.
        split: ``train`` or ``val``.
    """
    from pycocotools import mask as coco_mask

    for folder in ("images", "semantic", "annotations"):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(getattr(settings, split)):
        scene = make_scene(settings, split, number)
        name = f"{number:06}.png"
        Image.fromarray(scene.image).save(root / "images" / split / name)
        Image.fromarray(scene.semantic).save(root / "semantic" / split / name)
        images.append(dict(id=number, file_name=name, width=settings.size, height=settings.size))
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=label + 1,
                    bbox=list(box_of(mask)),
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=dict(size=code["size"], counts=code["counts"].decode()),
                )
            )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / "annotations" / split).rmdir()
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
