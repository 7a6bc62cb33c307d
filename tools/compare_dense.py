"""Dense Swin, STViT-R and SparseSwin under the same heads on DigitScenes: measure and draw.

Reads the last checkpoints of ``configs/quick`` below ``work_dirs`` (it names the command of one
that is missing), evaluates them, times them in turn in this process, and writes
``docs/results/dense_prediction.json`` and pictures of predictions. ``tools/make_dense_page.py``
makes the page from that.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

import tokensparse  # noqa: F401  registers everything

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "results" / "dense_prediction.json"
PICTURES = ROOT / "docs" / "dense_prediction"

BACKBONES = {"swin": "dense Swin", "stvit-r-swin": "STViT-R-Swin", "sparseswin": "SparseSwin"}
HEADS = {"instances": "cascade-mask-rcnn", "semantic": "upernet"}
FROZEN = "frozen-random"
FROZEN_OPTIONS = ("model.backbone.frozen_stages=4", "model.backbone.init_cfg=None")
Results = dict[str, Any]


def runs(task: str) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Name of a run -> config, work folder, overrides."""
    head = HEADS[task]
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for name in BACKBONES:
        stem = f"{name}_{head}_digit-scenes"
        found[name] = (f"configs/quick/{stem}.py", f"work_dirs/{stem}", ())
    if task == "instances":
        folder = f"work_dirs/{FROZEN}_{head}_digit-scenes"
        found[FROZEN] = (found["swin"][0], folder, FROZEN_OPTIONS)
    return found


def command(config: str, folder: str, options: tuple[str, ...]) -> str:
    """How a run is trained."""
    if not options:
        return f"python tools/train.py {config}"
    return f"python tools/train.py {config} --work-dir {folder} --cfg-options {' '.join(options)}"


def curve(points: list[list[float]]) -> list[list[float]]:
    """Epochs and values with four digits behind the point."""
    return [[round(float(at), 4), round(float(value), 4)] for at, value in points]


class Run:
    """A trained model with its validation data.

    Args:
        config: path below the repository.
        folder: its work folder.
        options: overrides of the command line.

    Raises:
        FileNotFoundError: no checkpoint of the last epoch; the message names the command.
    """

    def __init__(self, config: str, folder: str, options: tuple[str, ...]) -> None:
        from mmengine.registry import DefaultScope

        from tokensparse.engine.runner import Runner, read_checkpoint

        cfg = Config.fromfile(ROOT / config)
        checkpoint = ROOT / folder / f"epoch_{cfg.train_cfg.max_epochs}.pth"
        if not checkpoint.is_file():
            raise FileNotFoundError(
                f"no {checkpoint.relative_to(ROOT)}: {command(config, folder, options)}"
            )
        cfg.launcher, cfg.work_dir = "none", str(ROOT / folder)
        cfg.model.backbone.init_cfg = None
        cfg.visualizer = dict(type="Visualizer")
        DefaultScope.overwrite_default_scope(cfg.default_scope)
        self.cfg, self.config, self.options = cfg, config, options
        self.command = command(config, folder, options)
        self.progress = read_checkpoint(checkpoint)["progress"]
        cfg.load_from = str(checkpoint)
        runner = Runner.from_cfg(cfg)
        runner.load_or_resume()
        self.model = runner.model.eval()
        self.batches = runner.build_dataloader(cfg.val_dataloader)
        self.evaluator = runner.build_evaluator(cfg.val_evaluator)
        self.evaluator.dataset_meta = self.batches.dataset.metainfo

    def costs(self) -> Results:
        """Of the backbone in this model at the size of the scenes."""
        import tokensparse.registry
        from tokensparse.analysis import count

        settings = {k: v for k, v in self.cfg.model.backbone.items() if k != "init_cfg"}
        with torch.device("meta"):
            cost = count(tokensparse.registry.MODELS.build(settings), 192)
        params = sum(p.numel() for p in self.model.parameters())
        return dict(backbone_macs=cost.macs, backbone_params=cost.params, params=params)

    def quality(self, task: str) -> Results:
        """Metrics over the validation scenes."""
        from tokensparse.dense.quality import InstanceBoundaries, SemanticBoundaries, evaluate

        kind = InstanceBoundaries() if task == "instances" else SemanticBoundaries(11)
        found = evaluate(self.model, self.batches, self.evaluator, kind)
        return {name: round(value, 4) for name, value in found.items()}


def measure(task: str, rounds: int, before: Results | None = None) -> Results:
    """All runs of one task: quality, costs, and time and memory in turn.

    Args:
        task: a key of ``HEADS``.
        rounds: timed calls of each model.
        before: results whose quality is kept; None measures it.
    """
    from tokensparse.analysis import compare, device_name
    from tokensparse.analysis.timer import peak_bytes

    made = {name: Run(*told) for name, told in runs(task).items()}
    found: Results = {}
    for name, run in made.items():
        if before is not None:
            found[name] = dict(before["runs"][name])
            continue
        found[name] = dict(
            config=run.config,
            command=run.command,
            progress={k: curve(run.progress[k]) for k in ("loss", "val_acc")},
            **run.quality(task),
            **run.costs(),
        )
        print(name, {k: v for k, v in found[name].items() if isinstance(v, float)}, flush=True)
    batch = next(iter(made["swin"].batches))
    timed = [name for name in made if name != FROZEN]
    with torch.no_grad():
        inputs = made["swin"].model.data_preprocessor(batch)["inputs"]
        whole = {name: lambda m=made[name].model: m.test_step(batch) for name in timed}
        alone = {name: lambda m=made[name].model: m.backbone(inputs) for name in timed}
        for part, calls in (("model", whole), ("backbone", alone)):
            timings = compare(calls, rounds=rounds)
            for name in timed:
                found[name][f"{part}_images_per_second"] = round(
                    len(inputs) / timings[name].median, 2
                )
                found[name][f"{part}_peak_bytes"] = peak_bytes(calls[name], "cpu")
    draw_predictions(task, {name: made[name] for name in timed}, batch)
    return dict(
        device=device_name("cpu"),
        threads=torch.get_num_threads(),
        torch=torch.__version__.split("+")[0],
        batch=len(inputs),
        epochs=made["swin"].cfg.train_cfg.max_epochs,
        runs=found,
    )


def draw_predictions(task: str, made: dict[str, Run], batch: Any, images: int = 4) -> None:
    """Truth and what each model sees, side by side, for the first scenes of validation."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from tokensparse.dense.datasets import PALETTE

    seen = {name: run.model.test_step(batch) for name, run in made.items()}
    figure = Figure(figsize=(3.1 * (len(made) + 1), 3.1 * images), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(images, len(made) + 1)
    palette = np.array([[0, 0, 0], *PALETTE]) / 255
    for row in range(images):
        picture = batch["inputs"][row].permute(1, 2, 0).flip(-1).numpy() / 255
        columns = [("truth", batch["data_samples"][row])]
        columns += [(BACKBONES[name], samples[row]) for name, samples in seen.items()]
        for axes, (title, sample) in zip(grid[row], columns, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title)
            key = "gt" if title == "truth" else "pred"
            if task == "semantic":
                labels = getattr(sample, f"{key}_sem_seg").data[0].numpy()
                axes.imshow(np.dstack([palette[labels], 0.75 * (labels > 0)]))
            else:
                draw_instances(axes, getattr(sample, f"{key}_instances"), palette[1:], key)
    if task == "semantic":
        from matplotlib.patches import Patch

        digits = [Patch(color=palette[d + 1], label=str(d)) for d in range(10)]
        figure.legend(handles=digits, loc="outside lower center", ncols=10, title="digit")
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{task}.png", dpi=80, metadata={"Software": None})


def draw_instances(axes: Any, found: Any, palette: Any, key: str) -> None:
    """Boxes, masks, and ``digit score`` of one image; predictions from 0.5 on."""
    import numpy as np

    truth = key == "gt"
    if not truth:
        found = found[found.scores >= 0.5]
    masks = found.masks.to_ndarray() if truth else found.masks.numpy()
    boxes = found.bboxes.tensor if hasattr(found.bboxes, "tensor") else found.bboxes
    for index, label in enumerate(found.labels.tolist()):
        x0, y0, x1, y1 = boxes[index].tolist()
        color = palette[label]
        axes.imshow(np.dstack([np.broadcast_to(color, (*masks[index].shape, 3)), masks[index]]))
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=color, linewidth=1.2)
        text = str(label) if truth else f"{label} {found.scores[index]:.2f}"
        note = dict(facecolor=color, edgecolor="none", pad=0.8, alpha=0.85)
        axes.text(x0, max(y0, 8), text, color="white", fontsize=8, bbox=note)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each model")
    parser.add_argument("--times", action="store_true", help="time alone; keep the quality")
    args = parser.parse_args()
    results: Results = json.loads(DATA.read_text()) if DATA.is_file() else {}
    try:
        for task in args.tasks:
            results[task] = measure(task, args.rounds, results[task] if args.times else None)
            text = json.dumps(results, indent=1, default=float)
            DATA.write_text(re.sub(r"\[\s+([-\d.e]+),\s+([-\d.e]+)\s+\]", r"[\1, \2]", text) + "\n")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("now: python tools/make_dense_page.py")


if __name__ == "__main__":
    main()
