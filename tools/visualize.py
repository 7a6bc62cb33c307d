"""Draw what a config's token steps make of images: kept, merged and dropped patches, as PNG files.

``python tools/visualize.py CONFIG IMAGE... [--checkpoint FILE] [--block 3 6] [--out DIR]`` writes
for every image a strip over all steps, a picture of each step and, for models that return maps
(detection, segmentation), how far these lie from those of the dense model with the same weights.
"""

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import DictAction
from PIL import Image, ImageOps
from torch import Tensor, nn

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis import token_pictures as pictures
from tokensparse.analysis.baseline import backbone_of
from tokensparse.analysis.token_maps import dense_twin, patch_maps, with_before
from tokensparse.backbones import inner_model
from tokensparse.backbones.parts import image_size
from tokensparse.blocks.attention import SetAttention
from tokensparse.checkpoint import add_allow_globals, allow_globals
from tokensparse.classification.augmentation import ImagePreprocessor
from tokensparse.config_check import check_config, read_config
from tokensparse.engine.runner import read_checkpoint
from tokensparse.registry import MODELS

#: The bias of windows, which attention over a set lacks.
TABLE = "relative_position_bias_table"


class Source(NamedTuple):
    """One image to draw on.

    Attributes:
        name: of its pictures.
        path: where it was read.
        image: RGB.
    """

    name: str
    path: Path
    image: Image.Image


class Subject(NamedTuple):
    """What is drawn.

    Attributes:
        model: settings of the whole model.
        settings: of its backbone.
        backbone: in eval mode.
        title: config and weights.
        tables: weights of the checkpoint that only the dense model has, see :func:`load`.
    """

    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    backbone: nn.Module
    title: str
    tables: Mapping[str, Tensor]


def parse_args() -> argparse.Namespace:
    """Config, images, what to draw and where to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="of a classifier, a detector or a segmentor")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files that Pillow reads")
    parser.add_argument("--checkpoint", help="weights; without them the weights are random")
    parser.add_argument(
        "--block",
        nargs="+",
        default=["all"],
        help="steps to draw singly: all, or blocks where they open: 3 (any stage), 2.3 (stage 2)",
    )
    parser.add_argument("--out", help="folder; default work_dirs/<config>/token_maps")
    parser.add_argument(
        "--size",
        type=int,
        help="shorter side in pixels, 0 for the image's own; default: the backbone's img_size for "
        "classifiers, else the image's own",
    )
    parser.add_argument(
        "--plan",
        help="another plan for the backbone, a Python literal: "
        "\"{'every': {'type': 'ToMe', 'r': 13}}\"",
    )
    add_allow_globals(parser)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides")
    return parser.parse_args()


def upright_rgb(image: Image.Image) -> Image.Image:
    """As a camera meant it, in 8 bits; 16 bits of grey are scaled, not cut."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint16) // 257).astype(np.uint8))
    return image.convert("RGB")


def read_images(paths: Sequence[str]) -> list[Source]:
    """All images, before anything is built.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image that Pillow reads.
    """
    found: list[Source] = []
    for given in paths:
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"no image at {path}")
        try:
            with Image.open(path) as opened:
                image = upright_rgb(opened)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is no image that Pillow reads: {error}") from None
        name = path.stem
        while name in {source.name for source in found}:
            name += "_2"
        found.append(Source(name, path, image))
    return found


def plan_of(text: str) -> Any:
    """The plan that ``--plan`` writes.

    Raises:
        ValueError: no Python literal.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(
            f"--plan {text}: expected a Python literal, such as "
            "\"{'every': {'type': 'ToMe', 'r': 13}}\""
        ) from None


def subject_of(args: argparse.Namespace) -> Subject:
    """The backbone of a config with its weights.

    Raises:
        ValueError: a wrong config, a backbone that is not ours or has no steps, weights that are
            not its own.
    """
    cfg = read_config(args.config, args.cfg_options)
    model = inner_model(cfg.get("model") or {})
    if args.plan is not None and isinstance(model.get("backbone"), Mapping):
        model.backbone.plan = plan_of(args.plan)
    check_config(cfg)
    settings = backbone_of({"model": model}, args.config)
    torch.manual_seed((cfg.get("randomness") or {}).get("seed") or 0)
    backbone = MODELS.build(settings)
    if not hasattr(backbone, "forward_tokens"):
        raise ValueError(
            f"{type(backbone).__name__} has no trace (forward_tokens); take one of tokensparse"
        )
    if not len(backbone.plan.steps):
        raise ValueError(
            f"{args.config}: its plan has no step, so every patch stays a token; give one by --plan"
        )
    weights, tables = "RANDOM WEIGHTS", {}
    if args.checkpoint is not None:
        tables = load(backbone, args.checkpoint)
        weights = f"weights {'/'.join(Path(args.checkpoint).parts[-2:])}"
    given = model.get("data_preprocessor") or cfg.get("data_preprocessor")
    model = {"type": model.get("type", ""), "data_preprocessor": given}
    backbone.eval()
    return Subject(model, settings, backbone, f"{Path(args.config).stem}, {weights}", tables)


def load(backbone: nn.Module, path: str) -> dict[str, Tensor]:
    """Weights of a backbone, or of a model around one.

    Returns:
        What the backbone has no place for: bias tables of windows, where a block attends as a set
        inside a step.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights of another backbone.
    """
    state = read_checkpoint(path)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    inner = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    state, own = inner or state, backbone.state_dict()
    sets = {f"{k}.{TABLE}" for k, m in backbone.named_modules() if isinstance(m, SetAttention)}
    tables = {k: v for k, v in state.items() if k in sets and k not in own}
    state = {k: v for k, v in state.items() if k not in tables}
    for what, keys in (
        ("lacks weights of the backbone", [k for k in own if k not in state]),
        ("has weights that the backbone lacks", [k for k in state if k not in own]),
        ("has weights of another shape", [k for k in own if own[k].shape != state[k].shape])
        if own.keys() == state.keys()
        else ("", []),
    ):
        if keys:
            raise ValueError(
                f"{path} {what}: {keys[0]} ({len(keys)} in all); give the config that it was "
                "trained by, or convert it first (tools/convert_checkpoint.py)"
            )
    backbone.load_state_dict(state)
    return tables


def resized(image: Image.Image, subject: Subject, side: int | None) -> Image.Image:
    """The image at the size that is asked for.

    Raises:
        ValueError: a negative size.
    """
    if side is None:
        is_classifier = subject.settings.get("out_indices") is None
        side = min(image_size(subject.settings.get("img_size", 224))) if is_classifier else 0
    if side < 0:
        raise ValueError(f"--size {side}; expected pixels of the shorter side, or 0")
    if side in (0, min(image.size)):
        return image
    ratio = side / min(image.size)
    size = [max(1, round(s * ratio)) for s in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def as_input(pixels: np.ndarray, subject: Subject) -> Tensor:
    """(h, w, 3) uint8 -> (1, 3, h, w), normalised as the config's data_preprocessor does.

    Raises:
        ValueError: mean and std are not those of three channels.
    """
    settings = dict(subject.model["data_preprocessor"] or {})
    kind = str(settings.get("type", ""))
    if subject.model["type"].endswith("ImageClassifier") and not kind:
        kind = "tokensparse.ImagePreprocessor"
    x = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    if kind.endswith("ImagePreprocessor"):
        given = {k: v for k, v in settings.items() if k in ("mean", "std")}
        out: Tensor = ImagePreprocessor(**given)({"inputs": x})["inputs"]
        return out
    if not settings.get("bgr_to_rgb", False) and settings.get("mean") is not None:
        x = x.flip(1)  # mm reads blue first, and leaves it so
    mean, std = settings.get("mean") or (0.0,) * 3, settings.get("std") or (1.0,) * 3
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"data_preprocessor: mean={mean}, std={std}; expected three values each")
    return (x.float() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def chosen_steps(subject: Subject, asked: Sequence[str]) -> set[int]:
    """Indices of the steps to draw singly.

    Raises:
        ValueError: a block where no step opens.
    """
    steps = subject.backbone.plan.steps
    if list(asked) == ["all"]:
        return {step.index for step in steps}
    found: set[int] = set()
    for name in asked:
        hits = [s.index for s in steps if name in (str(s.first), f"{s.stage}.{s.first}")]
        if not hits:
            known = ", ".join(f"{s.stage}.{s.first} ({s.name})" for s in steps)
            raise ValueError(f"--block {name}: no step opens there; all, or stage.block of {known}")
        found |= set(hits)
    return found


@torch.no_grad()
def draw(subject: Subject, source: Source, args: argparse.Namespace, wanted: set[int]) -> dict:
    """Figures of one image, by the name of their file.

    Returns:
        name -> figure; and, under ``note``, why there is no dense picture where there is none.
    """
    image = resized(source.image, subject, args.size)
    pixels = np.array(image)
    x = as_input(pixels, subject)
    backbone, stride = subject.backbone, subject.backbone.stem.stride
    outs, trace = backbone.forward_tokens(x, collect=frozenset({"maps", "step_attn"}))
    maps = patch_maps(trace)
    size = f"{source.path.name}, {pixels.shape[0]} x {pixels.shape[1]} px"
    head = f"{subject.title}\n{size}"
    found: dict[str, Any] = {}
    found["depth"] = pictures.depth_figure(maps, pixels, stride, head)
    for patches, before in with_before(maps):
        if patches.step not in wanted:
            continue
        panels = pictures.step_panels(patches, pixels, stride, before)
        title = f"{head}\n{pictures.described(patches)}"
        name = f"step-{patches.step:02}_stage-{patches.stage}_block-{patches.block}"
        found[name] = pictures.figure(panels, title, 4, pictures.legend(patches, before))
    if subject.settings.get("out_indices") is not None:
        dense = dense_twin(subject.settings, backbone, subject.tables)
        if isinstance(dense, str):
            found["note"] = f"no picture of the difference to the dense model: {dense}"
        else:
            panels = pictures.difference_panels(outs, dense(x), pixels, stride)
            title = f"{head}\nmaps after recovery against those of the dense model, same weights: "
            title += "|difference| / mean |dense|"
            found["dense-difference"] = pictures.figure(panels, title, 5)
    return found


def out_folder(args: argparse.Namespace) -> Path:
    """Where the pictures go; made once everything else has worked.

    Raises:
        ValueError: a file lies there.
    """
    folder = Path(args.out or Path("work_dirs", Path(args.config).stem, "token_maps"))
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"--out {folder}: {place} is a file; give a folder")
    return folder


def main() -> None:
    """Read, build, draw, write."""
    args = parse_args()
    try:
        folder = out_folder(args)
        sources = read_images(args.images)
        with allow_globals(*args.allow_globals):
            subject = subject_of(args)
        wanted = chosen_steps(subject, args.block)
        drawn: dict[str, bytes] = {}
        notes: list[str] = []
        for source in sources:
            found = draw(subject, source, args, wanted)
            notes.append(found.pop("note", ""))
            for name, made in found.items():
                drawn[f"{source.name}_{name}.png"] = pictures.png_of(made)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in drawn.items():
            pictures.write_whole(content, folder / name)
            print(folder / name)
        for note in sorted(set(notes) - {""}):
            print(note)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
