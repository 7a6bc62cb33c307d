"""Accuracy against multiply-accumulates on Fashion-MNIST: train all five configs, write the page.

``python tools/compare_fashion_mnist.py --root FOLDER`` trains one config after the other on the CPU
(what is finished is not trained again), and writes ``docs/results/fashion_mnist.json``, the picture
beside it, ``docs/fashion_mnist.md`` and the results in ``configs/fashion_mnist/metafile.yml``.
Without ``--root`` it trains nothing and draws what is there; ``--check`` only compares the page.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from mmengine import __version__ as mmengine_version
from mmengine.config import Config

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis import count, device_name
from tokensparse.engine.precision import has_fast_bf16
from tokensparse.engine.runner import read_checkpoint
from tokensparse.registry import MODELS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "fashion_mnist"
DATA = ROOT / "docs" / "results" / "fashion_mnist.json"
PAGE = ROOT / "docs" / "fashion_mnist.md"

#: Config -> name in tables and pictures; a Top-K stands behind the STGM whose cost it matches.
NAMES = {
    "deit": "DeiT, dense",
    "deit_stgm-16": "STGM, 16 tokens",
    "deit_topk-53": "Top-K, 53 tokens",
    "deit_stgm-36": "STGM, 36 tokens",
    "deit_topk-71": "Top-K, 71 tokens",
}
PAIRS = [("deit_stgm-16", "deit_topk-53"), ("deit_stgm-36", "deit_topk-71")]
MADE = (
    "Made by `python tools/compare_fashion_mnist.py` from `docs/results/fashion_mnist.json`; edit "
    "those."
)
LIMITS = (
    "So the figures tell which learns fast on a small budget, as much as which can be accurate in "
    "the end. There is one seed: the spread between seeds is not measured and may well exceed that "
    "of the test images. Images are small and centred; nothing follows for ImageNet, where the "
    "paper trains for 300 epochs. The learning rates were chosen on the dense model, in runs of "
    "400 steps. Top-K ranks tokens by the mean attention they receive, as there is no class token, "
    "and opens one layer before STGM: from STGM's layer on, no Top-K fits the budget of 16 "
    "semantic tokens. Multiply-accumulates are not time: see the CPU minutes, which are those of "
    "training, with start-up and validation."
)
Results = dict[str, Any]


def cpu_seconds() -> float:
    """User and system time of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train(stem: str, root: str, work_dir: Path) -> float:
    """Train one config from the start in a process of its own, with one thread.

    Returns:
        CPU seconds of that process, start-up, reading and validation included.

    Raises:
        RuntimeError: the training failed; it has told why.
    """
    dataset = [f"{part}_dataloader.dataset.root={root}" for part in ("train", "val", "test")]
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(CONFIGS / f"{stem}.py")]
    command += ["--work-dir", str(work_dir), "--cfg-options", *dataset]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    before = cpu_seconds()
    done = subprocess.run(command, env={**os.environ, **hidden}, check=False)
    if done.returncode:
        raise RuntimeError(f"training of {stem} failed with status {done.returncode}")
    return cpu_seconds() - before


def measured(stem: str, work_dir: Path, seconds: float) -> Results:
    """What a finished run says, and what its model costs."""
    cfg = Config.fromfile(CONFIGS / f"{stem}.py")
    epochs = cfg.train_cfg.max_epochs
    accuracy = read_checkpoint(work_dir / f"epoch_{epochs}.pth")["progress"]["val_acc"]
    with torch.device("meta"):
        cost = count(MODELS.build(cfg.model), cfg.val_dataloader.dataset.img_size)
    return dict(
        config=f"configs/fashion_mnist/{stem}.py",
        name=NAMES[stem],
        top1=round(accuracy[-1][1], 2),
        best_top1=round(max(value for _, value in accuracy), 2),
        epochs=epochs,
        macs=cost.macs,
        params=cost.params,
        tokens=list(cost.tokens),
        cpu_seconds=round(seconds, 1),
    )


def conditions() -> Results:
    """Where and with what the figures were measured."""
    cfg = Config.fromfile(CONFIGS / "deit.py")
    return dict(
        data="Fashion-MNIST, 60,000 training and 10,000 test images",
        device=device_name("cpu"),
        threads=1,
        precision="bf16 autocast" if has_fast_bf16("cpu") else "fp32",
        seed=cfg.randomness.seed,
        batch_size=cfg.train_dataloader.batch_size,
        epochs=cfg.train_cfg.max_epochs,
        python=platform.python_version(),
        torch=torch.__version__.split("+")[0],
        timm=timm.__version__,
        mmengine=mmengine_version,
    )


def train_all(root: str, work_dirs: Path, out: Path) -> Results:
    """Train what has no result yet; the file is written after every config.

    Raises:
        ValueError: the file holds figures that were measured under other conditions.
    """
    now = conditions()
    results = json.loads(out.read_text()) if out.is_file() else {"conditions": now, "models": {}}
    if results["models"] and results["conditions"] != now:
        differing = sorted(k for k in now if now[k] != results["conditions"].get(k))
        raise ValueError(
            f"{out} holds figures of other conditions ({', '.join(differing)}): move it away to "
            "measure all configs anew"
        )
    for stem in NAMES:
        if stem in results["models"]:
            print(f"{stem}: {results['models'][stem]['top1']:.2f} %, already there")
            continue
        print(f"{stem}: training", flush=True)
        seconds = train(stem, root, work_dirs / stem)
        results["models"][stem] = measured(stem, work_dirs / stem, seconds)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def draw(results: Results, path: Path) -> None:
    """Accuracy of the last epoch against multiply-accumulates, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = {"DeiT": ("o", "black"), "STGM": ("s", "tab:blue"), "Top-K": ("^", "tab:orange")}
    for label, (marker, color) in styles.items():
        rows = [m for m in results["models"].values() if m["name"].startswith(label)]
        x, y = [m["macs"] / 1e6 for m in rows], [m["top1"] for m in rows]
        bars = [1.96 * standard_error(m["top1"]) for m in rows]
        axes.errorbar(x, y, bars, fmt=marker, color=color, capsize=3, label=label)
        place, align = ((7, -4), "left") if label == "STGM" else ((-7, -4), "right")
        for m, left, top in zip(rows, x, y, strict=True):
            axes.annotate(
                str(m["tokens"][-1]),
                (left, top),
                xytext=place,
                textcoords="offset points",
                ha=align,
                color=color,
            )
    axes.set(
        xlabel="multiply-accumulates of one image (millions)",
        ylabel="top-1 accuracy on the test images (%)",
        title=f"Fashion-MNIST, {results['conditions']['epochs']} epochs, one seed\n"
        "numbers: tokens after the last layer; bars: 95 % interval of 10,000 test images, "
        "not of seeds",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.title.set_fontsize("medium")
    axes.margins(x=0.08)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def standard_error(percent: float, images: int = 10_000) -> float:
    """Of an accuracy in percent, from the number of test images alone."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def compared(results: Results, first: str, second: str) -> str:
    """One sentence about two models, whatever the figures say."""
    a, b = results["models"][first], results["models"][second]
    points = a["top1"] - b["top1"]
    noise = 1.96 * math.hypot(standard_error(a["top1"]), standard_error(b["top1"]))
    relation = "above" if points > 0 else "below"
    verdict = "more" if abs(points) > noise else "no more"
    share = a["macs"] / b["macs"]
    cost = f"{share:.2%}" if abs(share - 1) < 0.01 else f"{share:.0%}"
    return (
        f"{a['name']} lies {abs(points):.2f} points {relation} {b['name']} at "
        f"{cost} of its multiply-accumulates, {verdict} than the {noise:.2f} points that 10,000 "
        "test images leave open."
    )


def table(results: Results) -> list[str]:
    """The table of the page."""
    head = ["config", "top-1 (%)", "best epoch (%)", "MACs (M)", "of dense", "parameters"]
    head += ["tokens after each layer", "CPU minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    dense = results["models"]["deit"]["macs"]
    for stem in NAMES:
        m = results["models"][stem]
        cells = [f"[{m['name']}](../{m['config']})", f"{m['top1']:.2f}", f"{m['best_top1']:.2f}"]
        cells += [f"{m['macs'] / 1e6:.2f}", f"{m['macs'] / dense:.1%}", f"{m['params']:,}"]
        cells += [", ".join(str(n) for n in m["tokens"]), f"{m['cpu_seconds'] / 60:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(results: Results) -> str:
    """The page; every figure comes from the results.

    Raises:
        ValueError: a config has no result yet.
    """
    missing = [stem for stem in NAMES if stem not in results["models"]]
    if missing:
        raise ValueError(f"no result of {', '.join(missing)} yet: give --root to train them")
    c = results["conditions"]
    total = sum(m["cpu_seconds"] for m in results["models"].values()) / 60
    pairs = [compared(results, *pair) for pair in PAIRS]
    dense = [compared(results, stgm, "deit") for stgm, _ in PAIRS]
    setting = (
        f"{c['data']}, 28 px in patches of 2 (196 tokens), no class token; {c['epochs']} epochs of "
        f"batch {c['batch_size']}, seed {c['seed']}, {c['precision']}, {c['threads']} thread of "
        f"{c['device']}, torch {c['torch']}. Top-1 is that of the last epoch; the best epoch is "
        "chosen on the same test images, for information only. "
        f"{total:.1f} CPU minutes in all."
    )
    lines = [
        "# Fashion-MNIST: accuracy against multiply-accumulates",
        "",
        MADE,
        "",
        "![accuracy against multiply-accumulates](results/fashion_mnist.png)",
        "",
        *table(results),
        "",
        setting,
        "",
        "**What it shows.** " + " ".join(dense + pairs),
        "",
        f"**What it cannot show.** {c['epochs']} epochs leave every model far from converged. "
        + LIMITS,
    ]
    return "\n".join(lines) + "\n"


def record(results: Results, metafile: Path) -> None:
    """Put the accuracies into the metafile, for ``tools/make_tables.py``."""
    meta = yaml.safe_load(metafile.read_text())
    c = results["conditions"]
    for model in meta["models"]:
        found = results["models"][Path(model["config"]).stem]
        how = (
            f"Last of {c['epochs']} epochs (best {found['best_top1']:.2f}), seed {c['seed']}, "
            f"{c['precision']}, {c['device']}, torch {c['torch']}: "
            "`python tools/compare_fashion_mnist.py`"
        )
        model["measured"] = dict(top1=found["top1"], how=how)
    metafile.write_text(yaml.safe_dump(meta, sort_keys=False, width=120))


def main() -> None:
    """Train, write, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="folder of the Fashion-MNIST files; trains")
    parser.add_argument(
        "--work-dirs", default="work_dirs/fashion_mnist", help="logs and checkpoints"
    )
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    args = parser.parse_args()
    try:
        if args.root:
            train_all(str(Path(args.root).resolve()), Path(args.work_dirs), DATA)
        if not DATA.is_file():
            raise ValueError(f"no {DATA.relative_to(ROOT)} yet: give --root to train")
        results = json.loads(DATA.read_text())
        text = page(results)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if args.check:
        if not PAGE.is_file() or PAGE.read_text() != text:
            sys.exit(f"stale: {PAGE.relative_to(ROOT)}; run python tools/compare_fashion_mnist.py")
        return
    PAGE.write_text(text)
    draw(results, DATA.with_suffix(".png"))
    record(results, CONFIGS / "metafile.yml")
    print("now: python tools/make_tables.py")


if __name__ == "__main__":
    main()
