"""The costs that the STViT paper prints come out of our models, counted in its way."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import make_stvit_tables as tables  # noqa: E402

from tokensparse.analysis import count  # noqa: E402
from tokensparse.analysis.published import layer_norm_operations, published_macs  # noqa: E402
from tokensparse.backbones import SwinTransformer  # noqa: E402


@pytest.fixture(scope="module")
def classification() -> list[tables.Row]:
    return tables.classification_rows(json.loads(tables.DATA.read_text()))


@pytest.fixture(scope="module")
def backbones() -> list[tables.Row]:
    return tables.backbone_rows(json.loads(tables.DATA.read_text()))


def test_tables_1_and_2(classification: list[tables.Row]) -> None:
    rows = [row for row in classification if row.base is not None]
    assert len(rows) == 24
    for row in rows:
        limit = 0.015 if row.model == "DeiT-T" else 0.007
        assert abs(row.difference) <= limit, row
        ours, printed = row.reductions
        assert abs(ours - printed) <= 0.007, row
        assert row.executed <= row.counted


def test_backbone_columns(backbones: list[tables.Row]) -> None:
    assert len(backbones) == 8
    for row in backbones:
        # the printed dense Swin-B at 800 x 1280 is above any count of ours, see the page
        limit = 0.033 if (row.tokens, row.printed) == ("dense", 343) else 0.03
        assert abs(row.difference) <= limit, row
        if row.released is not None:
            assert row.executed < row.printed < 0.6 * row.released
    executed = [row.executed for row in backbones if row.base is not None]
    assert all(a <= b for a, b in zip(executed, (134, 233, 34.5, 60), strict=True))


def test_page_is_fresh(classification: list[tables.Row], backbones: list[tables.Row]) -> None:
    assert tables.PAGE.read_text() == tables.page(classification, backbones)


def test_the_papers_way_of_a_small_swin() -> None:
    """Every addition by hand: 8 x 8 tokens in windows of 7 are padded to 14 x 14."""
    with torch.device("meta"):
        model = SwinTransformer(dict(embed_dim=8, depths=(2,), num_heads=(2,)), img_size=32)
    tokens, padded, c = 64, 196, 8
    norms = 5 * c * (1 + 2 * 2 + 1) * tokens  # stem, two a block, the last
    assert layer_norm_operations(model, (32, 32)) == norms
    zeros = 2 * 4 * (padded - tokens) * c * c
    assert published_macs(model, (32, 32)) == count(model, 32).macs + zeros + norms
