"""The STViT-R-Swin backbone against the naive ways and dense Swin, in turn in one process.

Four models, the first three with the same weights and outputs:

- ``ours``: keys and values are projected once per token, then gathered (arXiv:2303.08685's cost);
- ``unfold``: windows of keys are cut first and projected after, as the released code does, with
  our attention kernel;
- ``released``: the same with eager attention everywhere;
- ``dense``: Swin without a plan, same form of attention as ours.

Prints MACs, time and peak memory of a forward pass; writes JSON with ``--out``.
"""

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis import compare, device_name, peak_bytes
from tokensparse.analysis.executed import executed
from tokensparse.backbones import STViTSwin, SwinTransformer
from tokensparse.blocks.cross import CrossBlock
from tokensparse.ops.attention import HIDDEN, attend
from tokensparse.ops.cross_windows import KeyWindows, centred_windows, released_hidden
from tokensparse.ops.windows import WindowLayout, grid_centres, partition, unpartition
from tokensparse.plan import Flow, run_stage, stage_windows
from tokensparse.recoveries import AttentionRestore
from tokensparse.reducers import STGM
from tokensparse.tokens import Tokens


def unfold_then_project(
    layer: CrossBlock, q: Tensor, image: Tensor, where: KeyWindows, hidden: Tensor | None, form: Any
) -> Tensor:
    """Cut windows of unprojected tokens, all at once; normalise, project and attend each.

    Args:
        layer: whose ``keys_values`` projects.
        q: (B, R, S, h, q, D).
        image: (B, H, W, C), padded to whole windows by zeros.
        where: key windows; places outside the map are zeros.
        hidden: (1, H, W) booleans of the released mask, or None.
        form: of attention.

    Returns:
        (B, R, S, h, q, D).
    """
    before = -min(where.rows[0], where.cols[0], 0)
    after = max(
        where.rows[-1] + where.side - image.shape[1], where.cols[-1] + where.side - image.shape[2]
    )
    around = (before, max(after, 0)) * 2
    step = where.rows[1] - where.rows[0] if len(where.rows) > 1 else 1
    padded = F.pad(image, (0, 0, *around))
    cut = padded.unfold(1, where.side, step).unfold(2, where.side, step)
    cut = cut[:, : len(where.rows), : len(where.cols)].permute(0, 1, 2, 4, 5, 3).flatten(3, 4)
    k, v = layer.keys_values(cut).flatten(1, 2).permute(3, 0, 1, 4, 2, 5).unbind(0)
    bias = None
    if hidden is not None:
        seen = F.pad(hidden.float() * HIDDEN, around, value=HIDDEN)
        seen = seen.unfold(1, where.side, step).unfold(2, where.side, step)
        seen = seen[:, : len(where.rows), : len(where.cols)].flatten(3).flatten(1, 2)
        bias = seen[:, :, None, None].to(q.dtype)
    out, _ = attend(q.flatten(1, 2), k, v, bias, form=form)
    windows: Tensor = out.unflatten(1, q.shape[1:3])
    return windows


class UnfoldedSTGM(STGM):
    """STGM of the detection code, projecting after cutting."""

    def _image(self, t: Tokens, windows: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        target = (windows[0] * self.window, windows[1] * self.window)
        hidden, _ = released_hidden(self.padding, t.grid, self.window, target, t.x.device)
        rows, cols = target[0] - t.grid[0], target[1] - t.grid[1]
        return F.pad(t.x.unflatten(1, t.grid), (0, 0, 0, cols, 0, rows)), hidden

    def _first(self, p: Tensor, t: Tokens, windows: tuple[int, int]) -> Tensor:
        layer = self.blocks[0]
        image, hidden = self._image(t, windows)
        q = layer.queries(p).transpose(3, 4)
        where = centred_windows(windows, self.window, self.sides[0])
        out = unfold_then_project(layer, q, image, where, hidden, self.attention)
        return layer.feed(layer.add_attention(p, out.transpose(3, 4).flatten(4)))

    def _windowed(
        self, layer: CrossBlock, s: Tensor, t: Tokens, windows: tuple[int, int]
    ) -> Tensor:
        image, hidden = self._image(t, windows)
        tiles = s.unflatten(1, (windows[0], self.tile, windows[1], self.tile)).transpose(2, 3)
        q = layer.queries(tiles.flatten(3, 4)).transpose(3, 4)
        where = centred_windows(windows, self.window, self.sides[1])
        out = unfold_then_project(layer, q, image, where, hidden, self.attention)
        out = out.transpose(3, 4).flatten(4).unflatten(3, (self.tile, self.tile))
        return layer.feed(layer.add_attention(s, out.transpose(2, 3).flatten(1, 4)))


class UnfoldedRestore(AttentionRestore):
    """The recovery of the detection code, projecting after cutting."""

    def _windowed(self, x: Tensor, t: Tokens, grid: tuple[int, int] | None) -> Tensor:
        layout = WindowLayout(grid, self.window)
        windows = (layout.padded[0] // self.window, layout.padded[1] // self.window)
        cut = partition(x, layout).unflatten(1, windows)
        q = self.block.queries(cut).transpose(3, 4)
        hidden, _ = released_hidden(self.padding, grid, self.window, t.grid, x.device)
        where = centred_windows(windows, t.grid[0] // windows[0], self.key_side)
        image = t.x.unflatten(1, t.grid)
        out = unfold_then_project(self.block, q, image, where, hidden, self.attention)
        return unpartition(out.transpose(3, 4).flatten(4).flatten(1, 2), layout)


def unfolded(model: nn.Module, form: str) -> nn.Module:
    """A copy of an STViT-R model that projects after cutting; all attention in one form."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is STGM:
            module.__class__ = UnfoldedSTGM  # the same settings and weights, another forward
        elif type(module) is AttentionRestore:
            module.__class__ = UnfoldedRestore
        if hasattr(module, "form"):
            module.form = form
        if hasattr(module, "attention"):
            module.attention = form
    return model


def models(arch: Any) -> dict[str, nn.Module]:
    """The four, in eval mode; LayerScale is set to ordinary values, so that all parts count."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(out_indices=(0, 1, 2, 3))
    ours = STViTSwin(arch, released_pad_mask=True, **settings).eval()
    for name, parameter in ours.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    return {
        "ours": ours,
        "unfold": unfolded(ours, "auto"),
        "released": unfolded(ours, "eager"),
        "dense": SwinTransformer(arch, window_shift="always", **settings).eval(),
    }


def same_outputs(found: dict[str, nn.Module], img: Tensor) -> None:
    """Refuse to time two different functions.

    Raises:
        RuntimeError: maps of the naive ways differ from ours by more than 1e-3 of their spread.
    """
    expected = found["ours"](img)
    for name in ("unfold", "released"):
        for index, (a, b) in enumerate(zip(found[name](img), expected, strict=True)):
            worst = float((a - b).abs().max() / b.std())
            if not worst < 1e-3:
                raise RuntimeError(f"map {index} of {name!r} differs from ours by {worst:.1e}")


def unit_of(model: nn.Module, grid: tuple[int, int], x: Tensor) -> Callable[[], Any]:
    """Stage 3 alone, one dumbbell of six layers, on tokens of its own."""
    device = x.device
    size = torch.ones(1, x.shape[1], 1, device=device)
    tokens = Tokens(x[:, :0], size, grid_centres(grid, device), grid)
    windows = stage_windows(grid, 7, model.window_shift, False, device)
    return lambda: run_stage(model.plan, 2, model.stages[2].blocks, Flow(x, tokens), windows, False)


def measured(calls: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, Any]:
    """Time, memory and their ratios to ours."""
    times = compare(calls, rounds, warmup=1)
    memory = {name: peak_bytes(call, device) for name, call in calls.items()}
    return {
        name: dict(
            seconds=times[name].median,
            cpu_seconds=times[name].cpu_median,
            peak_mib=memory[name] / 2**20,
            time_over_ours=times[name].ratio(times["ours"]),
            cpu_time_over_ours=times[name].cpu_ratio(times["ours"]),
            memory_of_ours=memory["ours"] / memory[name],
        )
        for name in calls
    }


def show(title: str, rows: dict[str, Any]) -> None:
    """A table on screen."""
    print(title)
    for name, row in rows.items():
        cells = [f"{key} {value:.4g}" for key, value in row.items()]
        print(f"  {name:9}", "  ".join(cells))


@torch.inference_mode()
def main() -> None:
    """Backbone and dumbbell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=["tiny", "small", "base"], default="small")
    parser.add_argument("--shape", nargs=2, type=int, default=(640, 960), metavar=("H", "W"))
    parser.add_argument("--grid", nargs=2, type=int, default=(50, 80), help="of the one dumbbell")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    device, grid = args.device, tuple(args.grid)
    found = {name: model.to(device) for name, model in models(args.arch).items()}
    img = torch.randn(1, 3, *args.shape, device=device)
    same_outputs(found, img)
    backbone = measured({n: partial(m, img) for n, m in found.items()}, args.rounds, device)
    for name, row in backbone.items():
        row["gmacs"] = sum(executed(found[name], img).values()) / 1e9
    show(f"backbone STViT-R-Swin, {args.arch}, {args.shape[0]} x {args.shape[1]}", backbone)
    sizes = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    one = {n: m.to(device) for n, m in models(sizes).items()}
    x = torch.randn(1, grid[0] * grid[1], 384, device=device)
    unit = measured({n: unit_of(m, grid, x) for n, m in one.items()}, args.rounds, device)
    show(f"one dumbbell of stage 3, {grid[0]} x {grid[1]} x 384", unit)
    if args.out:
        head = dict(
            device=device_name(device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            arch=args.arch,
            shape=list(args.shape),
            grid=list(grid),
            rounds=args.rounds,
        )
        text = json.dumps({**head, "backbone": backbone, "dumbbell": unit}, indent=1)
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
