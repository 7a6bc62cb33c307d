"""Benchmark files as a page of tables and one picture each, and whether both are fresh.

Files are ``docs/results/benchmark_*.json`` as ``tools/benchmark.py`` writes them.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokensparse.analysis.benchmark.measure import SCHEMA
from tokensparse.analysis.benchmark.plain import plain_tables
from tokensparse.analysis.benchmark.targets import targets_table

PAGE = "docs/benchmarks.md"
INTRO = """# Benchmarks

Made by `python tools/make_tables.py` from `docs/results/benchmark_*.json`, which
`python tools/benchmark.py CONFIG... --out FILE.json` writes; edit neither the page nor the tables.

All models of a table ran strictly in turn in one process, on noise. **Speed-up** is the median over
the rounds of the dense model's time over this one's in the same round (10th..90th percentile behind
it). **MAC ratio** is the dense model's multiply-accumulates over this one's. **Efficiency** is
speed-up / MAC ratio: 1.0 means that every operation saved became time. It is void where our dense
model runs below 0.97 of timm's in the same run. Memory is what one call holds at most beyond
weights and images. **Plan** is the share of an eager forward pass that reducers, recoveries and the
scores made for them take. The clock `cpu` is process CPU time of one thread, `wall` wall clock,
`events` time on the GPU's stream. Accuracies in pictures are those of the metafiles: measured, else
published. `python tools/benchmark_list.py` measures these tables again, on a CPU or a GPU; the
tables at the end name their own tools. What is named `cuda` here ran on a GPU, and **without such a
section nothing here did**. Of the list, only what has a table here was run.
"""
HEADS = (
    "model",
    "batch",
    "dtype",
    "img/s",
    "p50 (ms)",
    "p95 (ms)",
    "peak (MiB)",
    "GMACs",
    "speed-up",
    "MAC ratio",
    "efficiency",
    "plan",
)
Data = Mapping[str, Any]


class Point(NamedTuple):
    """One model in the picture.

    Attributes:
        name: of the model.
        dtype: of the run.
        gmacs: of one image.
        img_s: images per second.
        tokens: mean over the blocks.
        top1: percent, or None.
        dense: it has no plan.
    """

    name: str
    dtype: str
    gmacs: float
    img_s: float
    tokens: float
    top1: float | None
    dense: bool


def files(root: Path) -> dict[Path, Data]:
    """Benchmark files of a repository; other JSON under the same names is left out."""
    found = {}
    for path in sorted(root.glob("docs/results/benchmark_*.json")):
        try:
            found[path] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no whole JSON file: {error}") from error
    return {path: data for path, data in found.items() if data.get("schema") == SCHEMA}


def page(root: Path, found: Mapping[Path, Data]) -> str:
    """The whole page."""
    folder = (root / PAGE).parent
    parts = [INTRO, targets_table(root / "docs/results")]
    for path, data in found.items():
        versions = ", ".join(f"{name} {value}" for name, value in data["versions"].items())
        picture = path.with_suffix(".png").relative_to(folder).as_posix()
        parts += [
            f"## {path.stem.removeprefix('benchmark_')}",
            "",
            _setting(data),
            f"Versions: {versions}. File: [{path.name}]({path.relative_to(folder).as_posix()}).",
            "",
            *([data["note"], ""] if data.get("note") else []),
            *([f"Stopped early: {data['failed']}", ""] if data.get("failed") else []),
            "| " + " | ".join(HEADS) + " |",
            "|---|" + "---:|" * (len(HEADS) - 1),
            *(_line(row) for row in data["rows"]),
            "",
            *_remarks(data["rows"]),
            *(
                [f"![images per second against multiply-accumulates]({picture})", ""]
                * drawable(data)
            ),
        ]
    return "\n".join([*parts, plain_tables(root / "docs/results")])


def _setting(data: Data) -> str:
    shape = " x ".join(str(side) for side in data["shape"])
    compiled = "eager" if data["compile"] is None else f"torch.compile ({data['compile']})"
    return (
        f"{data['device']}, {data['threads']} thread(s); {shape} px, {data['mode']}, {compiled}; "
        f"median of {data['rounds']} rounds after {data['warmup']}, clock: {data['clock']}."
    )


def _line(row: Data) -> str:
    name = row["name"] + (" (compiled)" if row["compiled"] else "")
    between, macs = row.get("speedup_range"), row["macs"]
    shares = row.get("shares") or {}
    speed = ""
    if between:
        speed = f"{row['speedup']:.2f} ({between['p10']:.2f}..{between['p90']:.2f})"
    efficiency = row.get("efficiency")
    cells = [
        f"[{name}](../{row['config']})" if row["config"] else name,
        str(row["batch"]),
        row["dtype"],
        f"{row['img_s']:.1f}",
        f"{row['latency_ms']['p50']:.1f}",
        f"{row['latency_ms']['p95']:.1f}",
        f"{row['peak_mem_bytes'] / 2**20:.1f}",
        "" if macs is None else f"{macs / 1e9:.3f}",
        speed,
        f"{row['mac_ratio']:.2f}" if row.get("mac_ratio") else "",
        "void" if row.get("void") else "" if efficiency is None else f"{efficiency:.2f}",
        f"{shares['all']:.1%}" if shares else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _remarks(rows: Sequence[Data]) -> Iterator[str]:
    lines = []
    for row in rows:
        where = f"{row['name']}, batch {row['batch']}, {row['dtype']}"
        timm = row.get("against_timm")
        if timm and timm["ratio"] is not None:
            lines.append(f"- {where}: {timm['ratio']:.3f} of timm's speed ({timm['timm']}).")
        elif timm:
            lines.append(f"- {where}: not held against timm's: {timm['reason']}.")
        if row.get("void"):
            lines.append(f"- {where}: efficiency is void: {row['void']}.")
        if row["compile_s"] is not None:
            lines.append(f"- {where}: the first call, compiling, took {row['compile_s']:.1f} s.")
        if row.get("mfu") is not None:
            lines.append(f"- {where}: {row['mfu']:.1%} of the GPU's peak rate (MFU).")
        shares = {k: v for k, v in (row.get("shares") or {}).items() if k != "all"}
        if shares:
            said = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            lines.append(f"- {where}: share of an eager forward pass: {said}.")
        if row.get("operations_ms"):
            top = list(row["operations_ms"].items())[:6]
            said = ", ".join(f"`{name}` {ms:.1f}" for name, ms in top)
            lines.append(f"- {where}: ms by operation, profiled: {said}.")
    yield from [*lines, ""] if lines else []


def points(data: Data, top1: Mapping[str, float]) -> tuple[list[Point], int]:
    """What the picture shows: our models at the largest batch, and that batch.

    Args:
        data: a benchmark file.
        top1: percent by config.
    """
    rows = [r for r in data["rows"] if r["kind"] in ("config", "dense") and r["macs"]]
    batch = max((row["batch"] for row in rows), default=0)
    return [
        Point(
            row["name"],
            row["dtype"],
            row["macs"] / 1e9,
            row["img_s"],
            sum(row["tokens"]) / max(len(row["tokens"]), 1),
            top1.get(row["config"] or ""),
            row["kind"] == "dense",
        )
        for row in rows
        if row["batch"] == batch
    ], batch


def drawable(data: Data) -> bool:
    """Whether a picture has anything to show: callables have no tokens, and perhaps no count."""
    return bool(points(data, {})[0])


def front(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Pareto front: places that no other place beats in both values (larger is better)."""
    return [
        i
        for i, (x, y) in enumerate(pairs)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in pairs)
    ]


def digest(data: Data, top1: Mapping[str, float]) -> str:
    """Of what a picture shows; it is kept inside the PNG."""
    shown = [points(data, top1), data["device"], data["threads"], data["shape"], data["mode"]]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def digest_in(path: Path) -> str | None:
    """The digest that a PNG holds, or None."""
    content = path.read_bytes() if path.is_file() else b""
    place = 8
    while place + 8 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, text = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        if kind == b"tEXt" and text.startswith(b"Data\0"):
            return text.removeprefix(b"Data\0").decode("latin-1")
        place += 12 + length
    return None


def draw(data: Data, top1: Mapping[str, float], path: Path) -> None:
    """Images per second against GMACs, accuracy (or tokens) against images per second; by dtype.

    Args:
        data: a benchmark file.
        top1: percent by config.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, batch = points(data, top1)
    dtypes = list(dict.fromkeys(point.dtype for point in shown))
    figure = Figure(figsize=(12.5, 0.4 + 4.8 * len(dtypes)), layout="constrained")
    FigureCanvasAgg(figure)
    shape = " x ".join(str(side) for side in data["shape"])
    threads = "" if data["clock"] == "events" else f", {data['threads']} thread(s)"
    void = any(row.get("void") for row in data["rows"] if row["batch"] == batch)
    note = "; efficiencies are VOID: see the page" if void else ""
    figure.suptitle(f"{data['device']}{threads}, batch {batch}, {shape} px, {data['mode']}{note}")
    for dtype, (left, right) in zip(
        dtypes, figure.subplots(len(dtypes), 2, squeeze=False), strict=True
    ):
        own = [point for point in shown if point.dtype == dtype]
        colours = draw_cost(left, own)
        figure.colorbar(colours, ax=left, label="image tokens, mean over the blocks")
        draw_front(right, own)
        left.set_title(dtype, loc="left")
    figure.savefig(path, dpi=110, metadata={"Software": None, "Data": digest(data, top1)})


def draw_cost(axes: Any, shown: Sequence[Point]) -> Any:
    """Images per second against GMACs, with the line on which all saved operations are time."""
    for point in shown:
        if point.dense:
            lowest = min(p.gmacs for p in shown)
            xs = [lowest * 0.95 + (point.gmacs - lowest * 0.95) * i / 60 for i in range(61)]
            rates = [point.img_s * point.gmacs / x for x in xs]
            axes.plot(
                xs, rates, "--", color="gray", lw=1, label=f"efficiency 1.0 of {named(point)}"
            )
    colours = axes.scatter(
        [p.gmacs for p in shown],
        [p.img_s for p in shown],
        c=[p.tokens for p in shown],
        cmap="viridis",
        s=70,
        zorder=3,
    )
    best = [shown[i] for i in front([(-p.gmacs, p.img_s) for p in shown])]
    ring(axes, [(p.gmacs, p.img_s) for p in best], "Pareto front: fewer GMACs, more images/s")
    label(axes, [(p.gmacs, p.img_s, named(p)) for p in shown])
    axes.set(xlabel="GMACs of one image", ylabel="images per second")
    return colours


def draw_front(axes: Any, shown: Sequence[Point]) -> None:
    """Top-1, or tokens where an accuracy is missing, against images per second."""
    accurate = all(p.top1 is not None for p in shown)
    what = "top-1 (%), measured or published" if accurate else "image tokens, mean over blocks"
    places = [(p.img_s, float(p.top1 or 0.0) if accurate else p.tokens) for p in shown]
    axes.scatter(*zip(*places, strict=True), color="tab:blue", s=70, zorder=3)
    best = sorted(places[i] for i in front(places))
    axes.step(*zip(*best, strict=True), where="pre", color="tab:red", lw=1)
    ring(axes, best, "Pareto front: faster, and more of the other axis")
    label(axes, [(x, y, named(p)) for (x, y), p in zip(places, shown, strict=True)])
    axes.set(xlabel="images per second", ylabel=what)


def named(point: Point) -> str:
    """Short name of a model."""
    return point.name.replace("_in1k", "")


def ring(axes: Any, places: Sequence[tuple[float, float]], what: str) -> None:
    """Mark places."""
    xs, ys = zip(*places, strict=True)
    axes.scatter(xs, ys, s=190, facecolors="none", edgecolors="tab:red", lw=1.5, label=what)


def label(axes: Any, places: Sequence[tuple[float, float, str]]) -> None:
    """Names beside places, to the side where there is room; margins, grid, legend.

    A name goes below its place where the name of another one is near above.
    """
    xs, ys = ([place[axis] for place in places] for axis in (0, 1))
    middle, wide, high = (min(xs) + max(xs)) / 2, max(xs) - min(xs), max(ys) - min(ys)
    for index, (x, y, text) in enumerate(places):
        side = ("left", 9) if x <= middle else ("right", -9)
        crowded = any(
            (a <= middle) == (x <= middle)
            and abs(a - x) <= 0.4 * wide
            and b - y <= 0.09 * high
            and (b, index) > (y, other)
            for other, (a, b, _) in enumerate(places)
            if other != index
        )
        axes.annotate(
            text,
            (x, y),
            (side[1], -13 if crowded else 7),
            textcoords="offset points",
            ha=side[0],
            fontsize=8,
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.5),
        )
    axes.margins(0.1, 0.16)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")


def top1_of(root: Path) -> dict[str, float]:
    """Measured top-1 by config, else the published one, from the metafiles."""
    import yaml

    found = {}
    for metafile in sorted(root.glob("configs/*/metafile.yml")):
        for model in yaml.safe_load(metafile.read_text())["models"]:
            value = (model.get("measured") or model.get("published") or {}).get("top1")
            if value is not None:
                found[model["config"]] = float(value)
    return found


def renew(root: Path, check: bool = False) -> list[str]:
    """Write the page and the pictures, or only compare.

    Args:
        root: of the repository.
        check: write nothing.

    Returns:
        What is stale, below ``root``; empty after writing.
    """
    found, top1 = files(root), top1_of(root)
    stale = []
    target, text = root / PAGE, page(root, found)
    if check and (not target.is_file() or target.read_text() != text):
        stale.append(PAGE)
    elif not check:
        target.write_text(text)
    for path, data in found.items():
        picture = path.with_suffix(".png")
        if not drawable(data):
            continue
        if digest_in(picture) == digest(data, top1):
            continue
        if check:
            stale.append(picture.relative_to(root).as_posix())
        else:
            draw(data, top1, picture)
    return stale
