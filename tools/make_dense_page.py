"""Write docs/dense_prediction.md and its curves from docs/results/dense_prediction.json.

Figures go to ``configs/quick/metafile.yml``, too, for ``tools/make_tables.py``. ``--check`` only
compares the page.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "results" / "dense_prediction.json"
PAGE = ROOT / "docs" / "dense_prediction.md"
META = ROOT / "configs" / "quick" / "metafile.yml"

NAMES = {
    "swin": "dense Swin",
    "stvit-r-swin": "STViT-R-Swin",
    "sparseswin": "SparseSwin",
    "frozen-random": "dense Swin, frozen at random",
}
TASKS = {
    "instances": "Boxes and masks: Cascade Mask R-CNN",
    "semantic": "Semantic maps: UPerNet",
}
Results = dict[str, Any]

INTRO = """# Dense prediction, trained

Made by `python tools/make_dense_page.py` from `docs/results/dense_prediction.json`, which
`python tools/compare_dense.py` measures; edit those.

DigitScenes are scikit-learn's handwritten digits composed into scenes of 192 px: 3 to 9 digits of
16 to 80 px over texture and clutter, with occlusion; 2,000 scenes to train, 200 to validate, of
disjoint digits. They are written on first use and read by mmdet's and mmseg's own data sets. Heads
are mmdet's and mmseg's own, narrowed as the headers of `configs/quick` say; one recipe and one seed
for all backbones.
"""
AP_NOTE = [
    "AP small and medium are COCO's: areas below and above 32 x 32 pixels. An object is found",
    "where a prediction of its class with a score of at least 0.3 covers its mask with IoU 0.5;",
    "mask and boundary IoU are means over those.",
]
LIMITS = """## What this cannot show

One seed: the spread between seeds is not measured, and differences of a hundredth may be nothing
else. Scenes of 192 px leave 12 x 12 tokens to stage 3: a dumbbell has little to save there, and
the heads take most of the time; [stvit_tables.md](stvit_tables.md) counts 800 x 1280. No digit
exceeds 96 px, so there is no AP of large objects. The paper's statement (equal boxes and masks on
COCO, about one mIoU less on ADE20K) was not repeated on its data.
"""


def draw_curves(results: Results, path: Path) -> None:
    """Training losses and validation metrics of all runs, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(results), 2, squeeze=False)
    for task, (left, right) in zip(TASKS, grid, strict=True):
        found = results[task]
        last = "bbox_mAP" if task == "instances" else "mIoU"
        for name, run in found["runs"].items():
            label = NAMES[name]
            left.plot(*zip(*smooth(run["progress"]["loss"]), strict=True), label=label)
            values = [*run["progress"]["val_acc"], [found["epochs"], run[last]]]
            right.plot(*zip(*values, strict=True), marker="o", label=label)
        metric = "box AP" if task == "instances" else "mIoU (%)"
        left.set(title=f"DigitScenes, {task}", xlabel="epoch", ylabel="training loss (smoothed)")
        right.locator_params(axis="x", integer=True)
        right.set(xlabel="epoch", ylabel=f"{metric}, validation")
        left.legend()
        for axes in (left, right):
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def smooth(points: list[list[float]], width: int = 5) -> list[tuple[float, float]]:
    """Means over ``width`` neighbours."""
    found = []
    for index, (at, _) in enumerate(points):
        near = [value for _, value in points[max(0, index - width + 1) : index + 1]]
        found.append((at, sum(near) / len(near)))
    return found


#: Column of the tables -> key of a run's figures, factor, decimals.
QUALITY = {
    "instances": {
        "box AP": ("bbox_mAP", 1, 3),
        "AP50": ("bbox_mAP_50", 1, 3),
        "box AP, small": ("bbox_mAP_s", 1, 3),
        "box AP, medium": ("bbox_mAP_m", 1, 3),
        "mask AP": ("segm_mAP", 1, 3),
        "mask AP, small": ("segm_mAP_s", 1, 3),
        "mask AP, medium": ("segm_mAP_m", 1, 3),
        "objects found": ("found", 1, 3),
        "mask IoU": ("mask_iou", 1, 3),
        "boundary IoU": ("boundary_iou", 1, 3),
    },
    "semantic": {
        "mIoU (%)": ("mIoU", 1, 2),
        "pixel accuracy (%)": ("aAcc", 1, 2),
        "class accuracy (%)": ("mAcc", 1, 2),
        "boundary IoU": ("boundary_iou", 1, 3),
    },
}
COSTS = {
    "backbone MACs (M)": ("backbone_macs", 1e-6, 1),
    "backbone parameters (M)": ("backbone_params", 1e-6, 2),
    "backbone images/s": ("backbone_images_per_second", 1, 1),
    "whole model images/s": ("model_images_per_second", 1, 1),
    "backbone peak memory (MiB)": ("backbone_peak_bytes", 1 / 2**20, 1),
    "whole model peak memory (MiB)": ("model_peak_bytes", 1 / 2**20, 1),
}


def table(found: Results, columns: dict[str, tuple[str, float, int]]) -> list[str]:
    """Runs as rows; a run without a figure leaves its cell empty."""
    lines = ["| backbone | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, run in found.items():
        label = NAMES[name]
        cells = [
            f"{run[key] * factor:.{decimals}f}" if key in run else ""
            for key, factor, decimals in columns.values()
        ]
        lines.append(f"| [{label}](../{run['config']}) | " + " | ".join(cells) + " |")
    return lines


def sentence(found: Results, task: str) -> str:
    """Dense Swin against STViT-R in words; every figure is read from the runs."""
    dense, ours = found["swin"], found["stvit-r-swin"]
    keys = (
        [("bbox_mAP", "box AP", 3), ("segm_mAP", "mask AP", 3)]
        if task == "instances"
        else [("mIoU", "mIoU points", 2)]
    )
    keys.append(("boundary_iou", "boundary IoU", 3))
    parts = [f"{ours[key] - dense[key]:+.{places}f} {label}" for key, label, places in keys]
    macs = ours["backbone_macs"] / dense["backbone_macs"]
    speed = ours["backbone_images_per_second"] / dense["backbone_images_per_second"]
    return (
        f"STViT-R against dense Swin: {', '.join(parts)}; {macs:.0%} of the backbone's "
        f"multiply-accumulates, backbone {speed:.2f} x as fast."
    )


def frozen_sentence(found: Results) -> str:
    """What neck and heads alone reach."""
    dense, frozen = found["swin"]["bbox_mAP"], found["frozen-random"]["bbox_mAP"]
    return (
        f"Neck and heads over a backbone frozen at random reach {frozen:.3f} box AP, "
        f"{dense - frozen:.3f} less than a trained one: the random blocks' residual stream carries "
        "nearly all of the pixels on, and digits can be told by their pixels. So most of the AP "
        "here is the heads' work, and what backbones differ by is the smaller part."
    )


def conditions(told: Results) -> str:
    """Where and how time and memory were measured."""
    return (
        f"{told['epochs']} epochs. Time in turn in one process, medians, batch {told['batch']}, "
        f"fp32, {told['threads']} thread(s) of {told['device']}, torch {told['torch']}; peak "
        "memory of tensors beyond weights and inputs. Not run on a GPU."
    )


def page(results: Results) -> str:
    """The page; every figure comes from the results.

    Raises:
        ValueError: a task has not been measured yet.
    """
    missing = [task for task in TASKS if task not in results]
    if missing:
        raise ValueError(f"no results of {', '.join(missing)} yet: python tools/compare_dense.py")
    lines = [INTRO, "![losses and metrics by epoch](dense_prediction/curves.png)", ""]
    for task, title in TASKS.items():
        told = results[task]
        lines += [f"## {title}", "", *table(told["runs"], QUALITY[task]), ""]
        lines += [f"**{sentence(told['runs'], task)}**", ""]
        if task == "instances":
            lines += [*AP_NOTE, "", frozen_sentence(told["runs"]), ""]
        lines += [
            "Boundary IoU (arXiv:2103.16562) compares bands of 2 pixels along outlines.",
            "",
            *table({k: v for k, v in told["runs"].items() if k != "frozen-random"}, COSTS),
            "",
            conditions(told),
            "",
            f"![truth and predictions](dense_prediction/{task}.png)",
            "",
            "```bash",
            *(run["command"] for run in told["runs"].values()),
            "```",
            "",
        ]
    return "\n".join([*lines, LIMITS.rstrip()]) + "\n"


#: What the metafile calls a figure -> key of a run's figures, decimals.
RECORDED = {
    "instances": {"box_ap": ("bbox_mAP", 3), "mask_ap": ("segm_mAP", 3)},
    "semantic": {"miou": ("mIoU", 2)},
}


def record(results: Results, metafile: Path) -> None:
    """Put the figures of every run into the metafile."""
    meta = yaml.safe_load(metafile.read_text())
    entries = {entry["config"]: entry for entry in meta["dense"]}
    for task, told in results.items():
        for name, run in told["runs"].items():
            if name == "frozen-random":
                continue
            found = {key: round(run[k], n) for key, (k, n) in RECORDED[task].items()}
            how = (
                f"After the last of {told['epochs']} epochs, seed 0, {told['device']}, torch "
                f"{told['torch']}: `{run['command']}`, then `python tools/compare_dense.py`"
            )
            entries[run["config"]]["measured"] = {**found, "how": how}
    metafile.write_text(yaml.safe_dump(meta, sort_keys=False, width=120))


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    args = parser.parse_args()
    try:
        results: Results = json.loads(DATA.read_text()) if DATA.is_file() else {}
        text = page(results)
    except ValueError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if args.check:
        if not PAGE.is_file() or PAGE.read_text() != text:
            sys.exit(f"stale: {PAGE.relative_to(ROOT)}; run python tools/make_dense_page.py")
        return
    PAGE.write_text(text)
    record(results, META)
    draw_curves(results, ROOT / "docs" / "dense_prediction" / "curves.png")


if __name__ == "__main__":
    main()
