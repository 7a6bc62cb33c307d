"""How attention narrows with depth: maps and scores of every block, as a PNG and JSON.

``python tools/attention_depth.py CONFIG [CHECKPOINT] --out attention.png --json attention.json``
takes validation images of a classification config. Vertical lines in a map are keys that all
queries look at; the score says which share of the attention the most attended keys receive.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from torch import Tensor, nn
from torch.utils.data import default_collate

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis.attention_depth import DepthRow, attention_depth, attention_maps
from tokensparse.config_check import check_config, merge_options
from tokensparse.engine.runner import read_checkpoint
from tokensparse.registry import DATASETS, MODELS

#: Maps drawn at most, evenly spread over the depth.
MAX_MAPS = 6


def parse_args() -> argparse.Namespace:
    """Config, checkpoint, how many images, where to write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="of a classifier")
    parser.add_argument("checkpoint", nargs="?", help="without one the weights are random")
    parser.add_argument("--images", type=int, default=64, help="validation images to average over")
    parser.add_argument("--batch", type=int, default=8, help="images run at once")
    parser.add_argument("--share", type=float, default=0.1, help="of the keys that count as top")
    parser.add_argument("--out", default="attention_depth.png", help="PNG to write")
    parser.add_argument("--json", help="JSON file to write")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides")
    return parser.parse_args()


def build(cfg: Config, checkpoint: str | None) -> nn.Module:
    """The classifier in eval mode, with the checkpoint's weights where there is one.

    Raises:
        ValueError: no classifier, or weights that are not the model's.
    """
    if not cfg.model.type.endswith("ImageClassifier"):
        raise ValueError(
            f"model.type={cfg.model.type!r}; expected tokensparse.ImageClassifier, whose data set "
            "gives single images"
        )
    torch.manual_seed(cfg.get("randomness", {}).get("seed", 0))
    settings = cfg.model.to_dict()
    settings["backbone"].pop("init_cfg", None)
    model: nn.Module = MODELS.build(settings).eval()
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)["state_dict"]
        state = {name.removeprefix("module."): value for name, value in state.items()}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} is of another model than the config: {error}") from None
    return model


def batches(cfg: Config, model: nn.Module, images: int, batch: int) -> Iterator[Tensor]:
    """Normalised validation images, evenly spread over the data set.

    Raises:
        ValueError: no image, or an empty batch, is asked for.
    """
    for name, value in (("--images", images), ("--batch", batch)):
        if value < 1:
            raise ValueError(f"{name} {value}; expected at least 1")
    dataset = DATASETS.build(cfg.val_dataloader.dataset.to_dict())
    count = min(images, len(dataset))
    chosen = [len(dataset) * i // count for i in range(count)]
    for start in range(0, count, batch):
        items = default_collate([dataset[i] for i in chosen[start : start + batch]])
        yield model.data_preprocessor(items)["inputs"]


def draw(
    rows: list[DepthRow],
    maps: list[tuple[int, int, Tensor]],
    share: float,
    title: str,
    path: Path,
) -> None:
    """Maps of one image above, scores of all blocks below.

    Args:
        rows: scores by block.
        maps: (stage, block, attention (B, h, n, m)); the first map is drawn, averaged over heads.
        share: what counts as top.
        title: of the figure.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * MAX_MAPS, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_maps(upper, maps)
    draw_scores(lower, rows, share)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_maps(figure: Any, maps: list[tuple[int, int, Tensor]]) -> None:
    """At most :data:`MAX_MAPS` maps, evenly spread over the depth."""
    shown = min(MAX_MAPS, len(maps))
    chosen = sorted({round(i * (len(maps) - 1) / max(shown - 1, 1)) for i in range(shown)})
    figure.suptitle(
        "attention of one image, mean over heads; each map from 0 to its 99th percentile "
        "(vertical lines: keys that all queries look at)",
        fontsize="medium",
    )
    for axes, i in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        stage, block, attn = maps[i]
        mean = attn[0].float().mean(0)
        axes.imshow(mean, cmap="magma", vmin=0.0, vmax=float(mean.quantile(0.99)))
        axes.set(xlabel="key", xticks=[], yticks=[])
        axes.set_title(f"block {named(stage, block)}, {mean.shape[1]} keys")
    figure.axes[0].set_ylabel("query")


def draw_scores(figure: Any, rows: list[DepthRow], share: float) -> None:
    """Share on the top keys, and effective numbers of keys, block by block."""
    left, right = figure.subplots(1, 2)
    places = list(range(len(rows)))
    left.plot(places, [r.top_share for r in rows], "o-", color="tab:blue", label="measured")
    left.plot(places, [r.uniform_share for r in rows], "--", color="gray", label="uniform")
    left.set(title=f"attention on the top {share:.0%} of the keys", ylabel="share of the attention")
    right.plot(places, [r.keys for r in rows], "--", color="gray", label="keys present")
    together = [r.effective_keys for r in rows]
    right.plot(places, together, "o-", color="tab:blue", label="all queries together")
    single = [r.effective_keys_per_query for r in rows]
    right.plot(places, single, "s-", color="tab:orange", label="one query, mean")
    right.set(title="effective number of keys: exp(entropy)", ylabel="keys")
    for axes in (left, right):
        axes.set(xlabel="block (stage.block)", xticks=places)
        axes.set_xticklabels([named(r.stage, r.block) for r in rows])
        axes.set_ylim(0, 1.45 * max(max(line.get_ydata()) for line in axes.lines))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", ncols=3)


def named(stage: int, block: int) -> str:
    """``2.3``: block 3 of stage 2, both from 0."""
    return f"{stage}.{block}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and draw.

    Returns:
        What goes to the JSON file.
    """
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options)
    check_config(cfg)
    model = build(cfg, args.checkpoint)
    given = list(batches(cfg, model, args.images, args.batch))
    rows = attention_depth(model.backbone, given, args.share)
    count = sum(len(b) for b in given)
    weights = "random weights" if args.checkpoint is None else Path(args.checkpoint).name
    title = f"{Path(args.config).stem} ({weights}), {count} validation images"
    draw(rows, attention_maps(model.backbone, given[0][:1]), args.share, title, Path(args.out))
    return dict(
        config=args.config,
        checkpoint=args.checkpoint,
        images=count,
        share=args.share,
        blocks=[row._asdict() for row in rows],
    )


def main() -> None:
    """Measure, draw, show, write."""
    args = parse_args()
    try:
        found = run(args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("block  keys  top share (uniform)  effective keys  a query's")
    for row in (DepthRow(**block) for block in found["blocks"]):
        print(
            f"{named(row.stage, row.block):>5}  {row.keys:4}  {row.top_share:9.3f}  "
            f"({row.uniform_share:.3f})  {row.effective_keys:14.1f}  "
            f"{row.effective_keys_per_query:9.1f}"
        )
    print(f"picture: {args.out}")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
