"""Write configs/<method>/README.md and docs/benchmarks.md; ``--check`` only compares.

The former come from metafile.yml, the latter, with pictures, from docs/results/benchmark_*.json.
``--count`` first renews parameters and multiply-accumulates of every model in the metafiles.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
HEADER = (
    "| config | model | data | parameters (M) | GMACs | published top-1 (%) | measured top-1 (%) |"
)
DENSE_HEADER = (
    "| config | backbone | head | data | backbone parameters (M) | backbone GMACs | published "
    "| measured |"
)
#: Metrics of dense prediction as the metafiles name them, and as people do.
DENSE_METRICS = {"box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU"}


def table(meta: dict[str, Any], folder: Path) -> str:
    """The README of one method.

    Args:
        meta: content of its metafile.
        folder: where the README lies; links are relative to it.
    """
    lines = [
        f"# {meta['collection']}",
        "",
        "Made by `python tools/make_tables.py` from `metafile.yml`; edit that.",
        "",
        "Papers: " + ", ".join(f"<{url}>" for url in meta["papers"]) + ".",
        "GMACs are multiply-accumulates of one image and forward pass, in 10^9.",
        "",
    ]
    notes: list[str] = []
    if meta["models"]:
        lines += [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
        lines += [row(model, folder, notes) for model in meta["models"]]
    if meta.get("dense"):
        lines += [
            "",
            "Detection and segmentation; counts are of the backbone at the size named:",
            "",
        ]
        lines += [DENSE_HEADER, "|" + "---|" * (DENSE_HEADER.count("|") - 1)]
        lines += [dense_row(model, folder, notes) for model in meta["dense"]]
    if notes:
        lines += ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def row(model: dict[str, Any], folder: Path, notes: list[str]) -> str:
    """One model; how its figure was measured goes to the notes."""
    config = ROOT / model["config"]
    link = up(config, folder)
    published = (model.get("published") or {}).get("top1")
    cells = [
        f"[{config.stem}]({link})",
        model["model"],
        model["data"],
        "" if model["parameters"] is None else f"{model['parameters'] / 1e6:.2f}",
        "" if model["gmacs"] is None else f"{model['gmacs']:.2f}",
        "" if published is None else f"{published:.2f}",
        noted(model, notes, lambda found: f"{found['top1']:.2f}"),
    ]
    return "| " + " | ".join(cells) + " |"


def noted(model: dict[str, Any], notes: list[str], shown: Callable[[Any], str]) -> str:
    """What was measured, with the number of the note that says how."""
    measured = model.get("measured")
    if not measured:
        return "not run"
    notes.append(measured["how"])
    return f"{shown(measured)} ({len(notes)})"


def dense_row(model: dict[str, Any], folder: Path, notes: list[str]) -> str:
    """One detector or segmentor."""
    config = ROOT / model["config"]
    cells = [
        f"[{config.stem}]({up(config, folder)})",
        model["model"],
        model["head"],
        model["data"],
        f"{model['parameters'] / 1e6:.2f}",
        f"{model['gmacs']:.2f} at {' x '.join(map(str, model['size']))}",
        dense_figures(model["published"] or {}),
        noted(model, notes, dense_figures),
    ]
    return "| " + " | ".join(cells) + " |"


def dense_figures(found: dict[str, Any]) -> str:
    """``box AP 51.8, mask AP 44.7``."""
    return ", ".join(f"{DENSE_METRICS[k]} {v}" for k, v in found.items() if k in DENSE_METRICS)


def up(path: Path, folder: Path) -> Path:
    """``path`` relative to ``folder`` or to the one above it."""
    if path.is_relative_to(folder):
        return path.relative_to(folder)
    return Path("..") / path.relative_to(folder.parent)


def counted(config: Path, size: list[int] | None) -> tuple[int, float]:
    """Parameters and GMACs of the model that a config builds, or of its backbone.

    Args:
        config: its file.
        size: of the image for the backbone; None takes the whole model at the data's size.
    """
    import torch
    from mmengine.config import Config

    import tokensparse  # noqa: F401  registers everything
    from tokensparse.analysis import count
    from tokensparse.registry import MODELS

    cfg = Config.fromfile(config)
    model = cfg.model
    if size is not None:
        model = {k: v for k, v in cfg.model.backbone.items() if k != "init_cfg"}
    with torch.device("meta"):
        found = count(MODELS.build(model), size or cfg.train_dataloader.dataset.img_size)
    return found.params, round(found.macs / 1e9, 5)


def recount(metafile: Path) -> None:
    """Renew the counts in a metafile; everything else stays as it is."""
    text = metafile.read_text()
    meta = yaml.safe_load(text)
    for model in [*meta["models"], *meta.get("dense", [])]:
        params, gmacs = counted(ROOT / model["config"], model.get("size"))
        entry = re.compile(
            rf"(- config: {re.escape(model['config'])}\n(?:  .*\n)*?  parameters: )"
            r"\S+(\n  gmacs: )\S+"
        )
        text = entry.sub(lambda m, p=params, g=gmacs: f"{m[1]}{p}{m[2]}{g}", text, count=1)
    metafile.write_text(text)


def main() -> None:
    """Write or compare every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", action="store_true", help="renew parameters and GMACs first")
    parser.add_argument("--check", action="store_true", help="fail where a table differs")
    args = parser.parse_args()
    stale = []
    for metafile in sorted(ROOT.glob("configs/*/metafile.yml")):
        if args.count:
            recount(metafile)
        readme = metafile.with_name("README.md")
        text = table(yaml.safe_load(metafile.read_text()), metafile.parent)
        if args.check and (not readme.is_file() or readme.read_text() != text):
            stale.append(str(readme.relative_to(ROOT)))
        elif not args.check:
            readme.write_text(text)
    from tokensparse.analysis.benchmark.page import renew

    stale += renew(ROOT, args.check)
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run python tools/make_tables.py")


if __name__ == "__main__":
    main()
