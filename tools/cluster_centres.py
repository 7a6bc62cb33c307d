"""Does attention recover cluster centres? Write docs/cluster_centres.md, its figures and picture.

``python tools/cluster_centres.py`` draws synthetic Gaussian clusters (half a minute on one core)
and writes ``docs/results/cluster_centres.json``, the picture beside it and the page; ``--check``
draws nothing and compares the page with the figures.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from tokensparse.analysis.cluster_centres import (
    Clusters,
    attention_centres,
    centre_error,
    gaussian_clusters,
    kmeans_centres,
    label_means,
)

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "results" / "cluster_centres.json"
PAGE = ROOT / "docs" / "cluster_centres.md"

DRAWS = 20
NOISES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
TEMPERATURES = (0.02, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5)
FIXED = dict(dim=64, noise=0.5, temperature=0.1, lengths=(1.0, 1.0))
#: Title, the setting on the x axis, its values, what else differs from FIXED.
SWEEPS: list[tuple[str, str, tuple[float, ...], dict[str, Any]]] = [
    ("noise", "noise", NOISES, {}),
    ("dimension", "dim", (4, 8, 16, 32, 64, 128, 256), {}),
    ("temperature", "temperature", TEMPERATURES, {}),
    ("noise, centres of different lengths", "noise", NOISES, {"lengths": (0.5, 1.5)}),
]
STYLES = {
    "guess": ("guess (spatial pooling)", "gray", "--", ""),
    "attention 1": ("attention, 1 layer", "tab:cyan", "-", "o"),
    "attention 2": ("attention, 2 layers", "tab:blue", "-", "s"),
    "attention 2, best temperature": ("attention, 2 layers, best temperature", "tab:blue", ":", ""),
    "distance 2": ("2 layers, distance logits", "tab:green", "-", "^"),
    "k-means, guess": ("k-means from the guess", "tab:orange", "-", "o"),
    "k-means": ("k-means, 10 starts", "tab:red", ":", ""),
    "labels known": ("means, labels known", "black", "--", ""),
}
AXES = {
    "noise": "noise: distance of tokens from their centre",
    "dim": "channels",
    "temperature": "temperature of the softmax",
}


def errors(clusters: Clusters, temperature: float) -> dict[str, Tensor]:
    """Error (draws,) of every method on the same tokens."""
    guess, tokens, centres = clusters.guess, clusters.tokens, clusters.centres
    count = centres.shape[1]
    found = {
        "guess": guess,
        "attention 1": attention_centres(guess, tokens, temperature, 1),
        "attention 2": attention_centres(guess, tokens, temperature, 2),
        "distance 2": attention_centres(guess, tokens, temperature, 2, distance=True),
        "k-means, guess": kmeans_centres(tokens, count, guess),
        "labels known": label_means(clusters),
    }
    result = {name: centre_error(value, centres) for name, value in found.items()}
    result["k-means"] = centre_error(kmeans_centres(tokens, count), centres, matched=False)
    tried = [centre_error(attention_centres(guess, tokens, t, 2), centres) for t in TEMPERATURES]
    result["attention 2, best temperature"] = min(tried, key=lambda error: float(error.mean()))
    return {name: result[name] for name in STYLES}


def sweep(
    axis: str, values: tuple[float, ...], other: dict[str, Any], draws: int
) -> dict[str, Any]:
    """Mean error of every method, and its standard error over the draws, at every value."""
    mean: dict[str, list[float]] = {name: [] for name in STYLES}
    spread: dict[str, list[float]] = {name: [] for name in STYLES}
    for value in values:
        setting = {**FIXED, **other, axis: value}
        temperature = setting.pop("temperature")
        for name, error in errors(gaussian_clusters(draws, **setting), temperature).items():
            mean[name].append(round(float(error.mean()), 4))
            spread[name].append(round(float(error.std() / draws**0.5), 4))
    return dict(axis=axis, values=list(values), mean=mean, standard_error=spread)


def measure(draws: int = DRAWS) -> dict[str, Any]:
    """All sweeps."""
    sweeps = {title: sweep(axis, values, other, draws) for title, axis, values, other in SWEEPS}
    settings = dict(FIXED, draws=draws, clusters=16, region=12, purity=0.5)
    return json.loads(json.dumps(dict(settings=settings, sweeps=sweeps)))


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a sweep, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    s = results["settings"]
    figure.suptitle(
        f"Distance from the true cluster centres (1 = distance of the nearest other centre)\n"
        f"16 clusters, 192 tokens; where not swept: {s['dim']} channels, noise {s['noise']}, "
        f"temperature {s['temperature']}; mean and standard error of {s['draws']} draws"
    )
    for axes, (title, found) in zip(
        figure.subplots(2, 2).flat, results["sweeps"].items(), strict=True
    ):
        for name, (label, color, line, marker) in STYLES.items():
            axes.errorbar(
                found["values"],
                found["mean"][name],
                found["standard_error"][name],
                label=label,
                color=color,
                linestyle=line,
                marker=marker,
                markersize=4,
            )
        axes.set(title=title, xlabel=AXES[found["axis"]], ylabel="error", ylim=(0, 1.2))
        if found["axis"] != "noise":
            axes.set_xscale("log")
            axes.set_xticks(found["values"], [f"{v:g}" for v in found["values"]], minor=False)
            axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def spans(found: dict[str, Any], better: str, worse: str) -> str:
    """The values at which one method's error is the smaller one, in words."""
    pairs = zip(found["values"], found["mean"][better], found["mean"][worse], strict=True)
    return ", ".join(f"{value:g}" for value, a, b in pairs if a < b) or "(none)"


def ratios(found: dict[str, Any], name: str, reference: str) -> list[float]:
    """Error of a method over that of another, value by value."""
    pairs = zip(found["mean"][name], found["mean"][reference], strict=True)
    return [a / b for a, b in pairs]


def table(found: dict[str, Any]) -> list[str]:
    """Errors of one sweep."""
    head = [found["axis"], *(label for label, *_ in STYLES.values())]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for i, value in enumerate(found["values"]):
        cells = [f"{value:g}", *(f"{found['mean'][name][i]:.3f}" for name in STYLES)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


TEXT = """# Does attention recover cluster centres?

Made by `python tools/cluster_centres.py` from `docs/results/cluster_centres.json`; edit those.

STViT (arXiv:2303.08685, Sec. 3.2) has semantic tokens stand for cluster centres: they start as
tokens pooled in space, and attention recovers the centres. Here is the bare mechanism on data whose
centres are known: S <- softmax(S X^T / temperature) X, once or twice, with identity projections,
one head, no residual, no norm, no feed-forward.

**Data.** 16 random centres of length 1 (about 1.4 apart), 192 tokens in 16 regions of 12; a token
belongs to its region's cluster with chance 0.5 and otherwise to any. The guess is the mean of a
region. `noise` is the root mean square distance of a token from its centre. **Error**: mean
distance of a found centre from the true one, in units of the distance of the nearest other centre.
**k-means** is scikit-learn's: from the same guess, or the best of ten starts, paired best with the
true centres. **Best temperature** is chosen at every point by the error itself, which nobody could
do without the true centres. **Distance logits** add the lengths of the keys, which makes a layer a
step of soft k-means.

![errors](results/cluster_centres.png)

## Where it holds

- Attention brings the guess closer to the centres while clusters are compact. One layer does at
  noise {one_helps}; two layers do at noise {two_help}. At best, at noise {low}, the error is
  {left:.0%} of the guess's.
- The second layer improves on the first at noise {second_helps}.
- More channels help, as noise becomes orthogonal to the centres: two layers beat the guess with
  {dims} channels.

## Where it fails

- It does not reach k-means. From the same guess, and with the best temperature at every noise
  level, two layers end at {best_min:.1f} to {best_max:.1f} times the error of k-means.
- The temperature decides: two layers beat the guess at {temperatures}, and not at the other
  temperatures tried. Too warm, all centres fall together; too cold, a centre becomes one token. A
  transformer has to learn it.
- In noise it makes the guess worse: at noise {last}, two layers have {two_last:.1f} times the error
  of the guess, one layer {one_last:.1f} times.
- Centres of different lengths (0.5 to 1.5) attract each other's queries, as the product prefers
  long keys: at noise 0.5 two layers leave {unequal:.0%} of the guess's error instead of
  {equal:.0%}; with distance logits {control:.0%}.

So one or two layers of attention are steps of a soft clustering that starts at the guess; they do
not recover the centres by themselves. Learned projections, residuals and feed-forwards, which STGM
has, are left out here; what they add is not measured.

## Figures
"""


def findings(results: dict[str, Any]) -> dict[str, Any]:
    """What the text says about the figures."""
    noise, dim, temperature, lengths = results["sweeps"].values()
    one, two = ratios(noise, "attention 1", "guess"), ratios(noise, "attention 2", "guess")
    best = ratios(noise, "attention 2, best temperature", "k-means, guess")
    left = [min(pair) for pair in zip(one, two, strict=True)]
    same = noise["values"].index(0.5)
    return dict(
        one_helps=spans(noise, "attention 1", "guess"),
        two_help=spans(noise, "attention 2", "guess"),
        low=noise["values"][left.index(min(left))],
        left=min(left),
        second_helps=spans(noise, "attention 2", "attention 1"),
        dims=spans(dim, "attention 2", "guess"),
        best_min=min(best),
        best_max=max(best),
        temperatures=spans(temperature, "attention 2", "guess"),
        last=noise["values"][-1],
        one_last=one[-1],
        two_last=two[-1],
        unequal=ratios(lengths, "attention 2", "guess")[same],
        equal=two[same],
        control=ratios(lengths, "distance 2", "guess")[same],
    )


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    lines = [TEXT.format(**findings(results))]
    for title, found in results["sweeps"].items():
        lines += [f"### {title[0].upper()}{title[1:]}", "", *table(found), ""]
    return "\n".join(lines)


def main() -> None:
    """Measure and write, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    args = parser.parse_args()
    if args.check:
        if not PAGE.is_file() or PAGE.read_text() != page(json.loads(DATA.read_text())):
            sys.exit(f"stale: {PAGE.relative_to(ROOT)}; run python tools/cluster_centres.py")
        return
    results = measure()
    DATA.parent.mkdir(parents=True, exist_ok=True)
    DATA.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, DATA.with_suffix(".png"))
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
