"""Write docs/stvit_tables.md: costs of STViT and STViT-R, ours beside the paper's and the released.

``python tools/make_stvit_tables.py``; ``--check`` only compares.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis import count
from tokensparse.analysis.published import published_macs
from tokensparse.registry import MODELS

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "results" / "stvit_published.json"
PAGE = ROOT / "docs" / "stvit_tables.md"

INTRO = """# STViT and STViT-R: what they cost

Made by `python tools/make_stvit_tables.py` from `docs/results/stvit_published.json`; edit those.

GMACs of one image and forward pass.

- **executed**: what our model runs: matrix products and convolutions, counted twice, by the
  executed operations and by closed formulas, which must agree (`tools/analyze.py`).
- **paper's way**: the same model counted as the paper does (`tokensparse/analysis/published.py`):
  LayerNorm at 5 operations a value, zeros that fill windows projected, keys of STGM's first layer
  projected after cutting windows, windows of keys multiplied alone. Only this column can be held
  against the paper's.
- **paper**: printed in arXiv:2303.08685.
- **reduction**: against the dense model of the same row, in percent, both counted or printed alike.
"""


NOTE = """Tokens are of the whole map (DeiT) or of a window of 7 x 7 (Swin); `moved`: STGM at an
earlier layer. STViT was never released; STViT-R-Swin was, for classification with 5.80 (S) and
10.23 (B) GMACs as we count the released code. The dense DeiT of this table has the paper's class
token; the baseline of `tools/analyze.py` has none, as STViT-DeiT has none, and costs 0.5 % less."""

BACKBONE_NOTE = """The released code projects keys and values after cutting overlapping windows: a
token up to 81 times. Ours projects it once, and gives the same maps. The printed cost of the dense
Swin at 800 x 1280 is 3 % above any count of ours; at 512 x 512 it agrees.
"""


class Row(NamedTuple):
    """One model of a table.

    Attributes:
        table: of the paper.
        model: name of the dense model.
        tokens: what the paper calls the variant; ``dense`` for none.
        executed: GMACs that ours runs.
        counted: GMACs in the paper's way.
        printed: GMACs in the paper.
        base: the dense row of the same model, or None where this is it.
        released: GMACs of the released code, or None.
    """

    table: str
    model: str
    tokens: str
    executed: float
    counted: float
    printed: float
    base: "Row | None" = None
    released: float | None = None

    @property
    def difference(self) -> float:
        """Counted over printed, less 1."""
        return self.counted / self.printed - 1

    @property
    def reductions(self) -> tuple[float, float]:
        """Share of the dense cost that is saved: counted, printed."""
        assert self.base is not None
        return 1 - self.counted / self.base.counted, 1 - self.printed / self.base.printed


def costs(backbone: dict[str, Any], size: tuple[int, int]) -> tuple[float, float]:
    """Executed and paper's GMACs of a backbone, with a head of 1,000 classes without maps."""
    with torch.device("meta"):
        if backbone.get("out_indices") is None:
            head = dict(type="tokensparse.LinearHead", num_classes=1000)
            model = MODELS.build(
                dict(type="tokensparse.ImageClassifier", backbone=backbone, head=head)
            )
        else:
            model = MODELS.build(backbone)
    return count(model, size).macs / 1e9, published_macs(model, size) / 1e9


def variant(entry: dict[str, Any], tokens: str) -> dict[str, Any]:
    """Settings of one STViT model."""
    settings = dict(
        type=f"tokensparse.{entry['type']}",
        arch=entry["arch"],
        num_tokens=int(tokens.split()[0]),
    )
    if tokens.endswith("moved"):
        settings["base_layers"] = 1 if entry["arch"] == "tiny" else 8
    return settings


def classification_rows(data: dict[str, Any]) -> list[Row]:
    """Tables 1 and 2."""
    rows = []
    for entry in data["rows"]:
        plain = "VisionTransformer" if entry["type"] == "STViTDeiT" else "SwinTransformer"
        dense = dict(type=f"tokensparse.{plain}", arch=entry["arch"])
        size = (224, 224)
        base = Row(entry["table"], entry["model"], "dense", *costs(dense, size), entry["dense"])
        rows.append(base)
        for tokens, printed in entry["published"].items():
            found = costs(variant(entry, tokens), size)
            rows.append(Row(entry["table"], entry["model"], tokens, *found, printed, base))
    return rows


def backbone_rows(data: dict[str, Any]) -> list[Row]:
    """The backbone columns of the COCO and ADE20K tables."""
    rows = []
    for entry in data["backbones"]:
        settings = dict(arch=entry["arch"], out_indices=(0, 1, 2, 3))
        size = (entry["size"][0], entry["size"][1])
        name = f"{entry['table']}, {size[0]} x {size[1]}"
        dense = costs(dict(type="tokensparse.SwinTransformer", **settings), size)
        base = Row(name, entry["model"], "dense", *dense, entry["dense"])
        reduced = costs(dict(type="tokensparse.STViTSwin", **settings), size)
        printed, released = entry["published"], entry["released"]
        rows.append(base)
        rows.append(Row(name, entry["model"], "STViT-R", *reduced, printed, base, released))
    return rows


def table(rows: list[Row], tokens: str, released: bool, digits: int) -> list[str]:
    """One table of the page."""
    head = ["table", "model", tokens, "executed", "paper's way", "paper", "difference"]
    head += ["reduction", "paper's reduction", *(["released code"] if released else [])]
    lines = ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.table, row.model, row.tokens]
        cells += [f"{value:.{digits}f}" for value in (row.executed, row.counted)]
        cells += [f"{row.printed:g}", f"{row.difference:+.2%}"]
        cells += [f"{saved:.1%}" for saved in row.reductions] if row.base else ["", ""]
        if released:
            cells.append("" if row.released is None else f"{row.released:g}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(classification: list[Row], backbones: list[Row]) -> str:
    """The whole page."""
    lines = [INTRO, "## Classification, 224 px"]
    lines += table(classification, "semantic tokens", released=False, digits=3)
    lines += ["", NOTE, "", "## Backbones of detection and segmentation"]
    lines += table(backbones, "plan", released=True, digits=2)
    lines += ["", BACKBONE_NOTE]
    return "\n".join(lines)


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the page differs")
    args = parser.parse_args()
    data = json.loads(DATA.read_text())
    text = page(classification_rows(data), backbone_rows(data))
    if not args.check:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        sys.exit(f"stale: {PAGE.relative_to(ROOT)}; run python tools/make_stvit_tables.py")


if __name__ == "__main__":
    main()
