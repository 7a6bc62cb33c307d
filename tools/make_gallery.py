"""Write docs/gallery.md and docs/gallery/*.png: pictures by tools/visualize.py, and their commands.

``--images`` only writes the images that the commands read, to work_dirs/gallery. A case whose
checkpoint is not there keeps the picture that it has.
"""

import argparse
import io
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "gallery"
#: Where images and whole sets of pictures go, from the root of the repository.
WORK = "work_dirs/gallery"
#: Bytes of all pictures of the page, at most.
BUDGET = 2_000_000
#: Bytes of one picture, beyond which it gets fewer colours.
LARGE = 150_000

FASHION, QUICK = "configs/fashion_mnist", "configs/quick"
TRAINED = "work_dirs/fashion_mnist"


class Case(NamedTuple):
    """One part of the page.

    Attributes:
        name: of its folder in ``WORK``, and of its pictures in the page.
        title: heading.
        text: what is to be seen.
        config: path of the config.
        images: names in ``WORK``.
        shown: names of the pictures that the page takes, without ``.png``.
        checkpoint: weights, or None for random ones.
        plan: for ``--plan``.
    """

    name: str
    title: str
    text: str
    config: str
    images: tuple[str, ...]
    shown: tuple[str, ...]
    checkpoint: str | None = None
    plan: str | None = None

    def arguments(self) -> list[str]:
        """Of tools/visualize.py."""
        args = [self.config, *(f"{WORK}/{name}" for name in self.images)]
        args += ["--checkpoint", self.checkpoint] if self.checkpoint else []
        args += ["--plan", self.plan] if self.plan else []
        return [*args, "--out", f"{WORK}/{self.name}"]


CASES = [
    Case(
        "tome",
        "ToMe, off the shelf",
        "A dense model trained on Fashion-MNIST; ToMe merges 26 tokens in every block, without any "
        "training for it. Patches merge by their keys, neighbours or not, in the garment and in "
        "the background; in the last blocks a few tokens stand for most of the garment. A token "
        "keeps its colour while its first patch stays.",
        f"{FASHION}/deit.py",
        ("boot.png", "dress.png"),
        ("boot_depth", "dress_depth", "dress_step-05_stage-0_block-5"),
        f"{TRAINED}/deit/epoch_2.pth",
        "{'every': {'type': 'ToMe', 'r': 26}}",
    ),
    Case(
        "evit",
        "EViT, off the shelf",
        "The same dense model; three steps keep 60 % of the tokens each, by the mean attention "
        "that a token receives (the model has no class token), and fuse the others into one token. "
        "Without training for it, that score is not what the class is seen by: most of the boot is "
        "fused at once, the middle of the dress in the second step; outlines stay.",
        f"{FASHION}/deit.py",
        ("boot.png", "dress.png"),
        ("boot_depth", "dress_depth"),
        f"{TRAINED}/deit/epoch_2.pth",
        "[{'span': (1, None), 'reduce': {'type': 'EViT', 'keep': 0.6}}, "
        "{'span': (2, None), 'reduce': {'type': 'EViT', 'keep': 0.6}}, "
        "{'span': (4, None), 'reduce': {'type': 'EViT', 'keep': 0.6}}]",
    ),
    Case(
        "topk",
        "Top-K, trained with it",
        "53 of 196 tokens stay after the second block; the others are dropped. What attention "
        "ranks highest is not simply the garment: parts of it go, parts of the background stay.",
        f"{FASHION}/deit_topk-53.py",
        ("boot.png", "dress.png"),
        ("boot_step-00_stage-0_block-1", "dress_step-00_stage-0_block-1"),
        f"{TRAINED}/deit_topk-53/epoch_2.pth",
    ),
    Case(
        "stgm",
        "STGM, trained with it",
        "16 semantic tokens. The regions, whose centres start the tokens, serve size and recovery; "
        "where a token looks is its attention in layer 2: a few look at the whole garment, "
        "most at very few patches of it, and hardly any at the background.",
        f"{FASHION}/deit_stgm-16.py",
        ("dress.png",),
        ("dress_step-00_stage-0_block-2",),
        f"{TRAINED}/deit_stgm-16/epoch_2.pth",
    ),
    Case(
        "sparta",
        "SparTa: a soft map, trained with it",
        "A learned mix of places, the same for all images: every patch is divided among all tokens "
        "by the magnitude of its weights, and no token owns a place.",
        f"{QUICK}/sparseswin_digits.py",
        ("digit.png",),
        ("digit_step-00_stage-3_block-0",),
        "work_dirs/sparseswin_digits/epoch_20.pth",
    ),
    Case(
        "photo",
        "A photograph, any size",
        "DeiT-S with RANDOM weights, ToMe with r = 16 in every block: keys of random weights still "
        "carry colour, so sky merges with sky. 14 x 21 patches here; any image size runs.",
        "configs/dense/deit-s_in1k.py",
        ("china.png",),
        ("china_depth", "china_step-08_stage-0_block-8"),
        plan="{'every': {'type': 'ToMe', 'r': 16}}",
    ),
    Case(
        "detector",
        "Semantic tokens of a trained detector",
        "STViT-R-Swin under Cascade Mask R-CNN, trained on DigitScenes; a scene that it has not "
        "seen. 9 semantic tokens stand for each of four windows of stage 2, which reach over the "
        "map. Layer 2 looks nearly alike at every patch and from every token (see the scale of the "
        "leads), and differs at the digits alone: of the tokens shown, most look past their "
        "strokes, two at them.",
        f"{QUICK}/stvit-r-swin_cascade-mask-rcnn_digit-scenes.py",
        ("scene.png",),
        ("scene_step-00_stage-2_block-1",),
        "work_dirs/stvit-r-swin_cascade-mask-rcnn_digit-scenes/epoch_4.pth",
    ),
    Case(
        "dense",
        "Dense models: what recovery does not bring back",
        "A dense Swin under UPerNet, trained on DigitScenes; ToMe, off the shelf, merges half of "
        "the tokens of stage 2's windows for two blocks, twice. Maps against those of the dense "
        "backbone with the same weights: the first two are taken before any step and are the same "
        "to the last bit; after it, digits differ and the board hardly does.",
        f"{QUICK}/swin_upernet_digit-scenes.py",
        ("scene.png",),
        ("scene_step-01_stage-2_block-3", "scene_dense-difference"),
        "work_dirs/swin_upernet_digit-scenes/epoch_30.pth",
        "[{'stage': 2, 'span': (1, 2), 'reduce': {'type': 'Windowed', 'window': 6, "
        "'reducer': {'type': 'ToMe', 'r': 18}}, 'recover': {'type': 'Scatter'}}, "
        "{'stage': 2, 'span': (3, 4), 'reduce': {'type': 'Windowed', 'window': 6, "
        "'reducer': {'type': 'ToMe', 'r': 18}}, 'recover': {'type': 'Scatter'}}]",
    ),
    Case(
        "windows",
        "Windows: ToMe in a Swin",
        "`Windowed` runs any reducer in every window of a stage: 24 of 49 tokens merge in each. "
        "RANDOM weights; windows that reach over the border hold tokens of padding.",
        "configs/tome/tome_swin-t_mask-rcnn_1x_coco.py",
        ("flower.png",),
        ("flower_step-00_stage-2_block-2",),
    ),
]

INTRO = """# Gallery

Made by `python tools/make_gallery.py`; `python tools/make_gallery.py --images` writes the images
that the commands below read (photographs and digits of scikit-learn, a scene of DigitScenes, test
images of Fashion-MNIST) to `work_dirs/gallery`. Checkpoints come from `python tools/train.py
CONFIG` with the config that the command names.

All is read off the trace that every backbone gives (`forward_tokens(img, collect={"maps"})`): the
map of each step, followed back to the patches. A patch is *kept* (a token of its own), *merged*
(its token stands for other patches, too: fused tokens, clusters, soft shares) or *dropped*. The
pictures show which tokens stand for which patches, not what the features hold; "mean colour" is
the image as the same maps would average and spread it.

While a model trains, `custom_hooks = [dict(type="tokensparse.TokenMapHook", num_images=4)]` draws
the same strips after every validation, to TensorBoard and beside the log.
"""


def write_images(root: str) -> None:
    """The images that the commands read.

    Args:
        root: folder of Fashion-MNIST.
    """
    from sklearn.datasets import load_sample_images

    from tokensparse.classification import DigitsDataset
    from tokensparse.classification.fashion_mnist import FashionMNISTDataset
    from tokensparse.dense.digit_scenes import SceneSettings, make_scene

    folder = ROOT / WORK
    folder.mkdir(parents=True, exist_ok=True)
    samples = load_sample_images()
    for name, pixels in zip(samples.filenames, samples.images, strict=True):
        Image.fromarray(pixels).save(folder / f"{Path(name).stem}.png")
    fashion = FashionMNISTDataset(root=root, split="val", img_size=28)
    for name, index in (("boot", 0), ("dress", 13)):
        fashion.reader[index][0].convert("L").save(folder / f"{name}.png")
    Image.fromarray(make_scene(SceneSettings(), "val", 3).image).save(folder / "scene.png")
    DigitsDataset(split="val", img_size=64).reader[4][0].save(folder / "digit.png")


def small_png(path: Path) -> bytes:
    """A picture without transparency; a large one, of photographs, with 256 colours."""
    content = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    if path.stat().st_size > LARGE:
        small = small.quantize(256)
    small.save(content, format="png", optimize=True)
    return content.getvalue()


def draw(case: Case) -> dict[str, bytes]:
    """Run the tool; name in the page -> picture."""
    import visualize

    before = sys.argv
    sys.argv = ["tools/visualize.py", *case.arguments()]
    try:
        visualize.main()
    finally:
        sys.argv = before
    return {
        f"{case.name}_{name}.png": small_png(ROOT / WORK / case.name / f"{name}.png")
        for name in case.shown
    }


def section(case: Case) -> str:
    """Heading, text, command and pictures of a case."""
    quoted = [f'"{a}"' if "'" in a else shlex.quote(a) for a in case.arguments()]
    command = " ".join(["python tools/visualize.py", *quoted])
    lines = [f"## {case.title}", "", case.text, "", "```", command, "```", ""]
    for name in case.shown:
        lines += [f"![{case.title}: {name}](gallery/{case.name}_{name}.png)", ""]
    return "\n".join(lines)


def complete(case: Case) -> bool:
    """Whether all pictures of a case are in the repository."""
    return all((PICTURES / f"{case.name}_{name}.png").is_file() for name in case.shown)


def main() -> None:
    """Images, pictures, page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", action="store_true", help="only write the images")
    parser.add_argument("--cases", nargs="+", help="draw only these; default: all")
    parser.add_argument("--fashion-mnist", default="data/fashion-mnist", help="its folder")
    args = parser.parse_args()
    names = [case.name for case in CASES]
    unknown = sorted(set(args.cases or ()) - set(names))
    if unknown:
        sys.exit(f"--cases {unknown[0]}: unknown; legal: {', '.join(names)}")
    os.chdir(ROOT)
    write_images(args.fashion_mnist)
    if args.images:
        return
    from tokensparse.analysis.token_pictures import write_whole

    PICTURES.mkdir(parents=True, exist_ok=True)
    for case in CASES if args.cases is None else [c for c in CASES if c.name in args.cases]:
        if case.checkpoint and not (ROOT / case.checkpoint).is_file():
            print(f"{case.name}: left as it is, {case.checkpoint} is not there")
            continue
        for name, content in draw(case).items():
            write_whole(content, PICTURES / name)
    wanted = {f"{c.name}_{n}.png" for c in CASES for n in c.shown}
    for path in PICTURES.glob("*.png"):
        if path.name not in wanted:
            path.unlink()
    size = int(np.sum([p.stat().st_size for p in PICTURES.glob("*.png")]))
    if size > BUDGET:
        sys.exit(f"docs/gallery holds {size:,} bytes, over {BUDGET:,}: show fewer pictures")
    parts = [INTRO, *(section(case) for case in CASES if complete(case))]
    write_whole("\n".join(parts).rstrip().encode() + b"\n", PAGE)
    print(f"{PAGE.relative_to(ROOT)}: {size:,} bytes of pictures")


if __name__ == "__main__":
    main()
