"""Laws that hold for every reducer, whatever its weights."""

import pytest
import torch
from small import image, small_swin, small_vit

from tokensparse.interfaces import Reducer
from tokensparse.plan import build_part
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, Hints, SoftMap, Tokens, WindowMap

SETTINGS = {
    "TopK": dict(type="TopK", keep=0.5),
    "EViT": dict(type="EViT", keep=0.5),
    "ToMe": dict(type="ToMe", r=9),
    "SparTa": dict(type="SparTa", num_tokens=10),
    "Windowed[TopK]": dict(type="Windowed", window=4, reducer=dict(type="TopK", keep=5)),
    "Windowed[ToMe]": dict(type="Windowed", window=4, reducer=dict(type="ToMe", r=5)),
    "STGM": dict(type="STGM", num_tokens=4),
    "STGM in windows": dict(type="STGM", num_tokens=4, window=4),
    "STGM over the border": dict(type="STGM", num_tokens=4, window=4, spec="released-det"),
    "Windowed[SparTa]": dict(type="Windowed", window=4, reducer=dict(type="SparTa", num_tokens=3)),
}
MERGES = [name for name in SETTINGS if "TopK" not in name]
every = pytest.mark.parametrize("name", SETTINGS)


def build(name: str, grid: tuple[int, int] = (8, 8)) -> Reducer:
    torch.manual_seed(0)
    return build_part(REDUCERS, SETTINGS[name], dim=16, num_heads=2, grid=grid)


def tokens(grid: tuple[int, int] = (8, 8), batch: int = 3, seed: int = 0) -> tuple[Tokens, Hints]:
    g = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    x = torch.randn(batch, n, 16, generator=g)
    pos = torch.rand(batch, n, 2, generator=g) * 8
    key, score = torch.randn(batch, n, 8, generator=g), torch.rand(batch, n, generator=g)
    return Tokens(x, torch.ones(batch, n, 1), pos, grid), Hints(key, None, score, 1, n)


@every
def test_counts_are_what_num_out_says(name: str) -> None:
    for grid in ((8, 8), (7, 9)):
        t, hints = tokens(grid)
        out, token_map = build(name)(t, hints, True)
        n = grid[0] * grid[1]
        m = build(name).num_out_at(n, n, grid)
        assert out.x.shape[1] == out.size.shape[1] == out.pos.shape[1] == m
        assert token_map is not None and token_map.down(t.x).shape == (3, m, 16)
        assert build(name)(t, hints, False)[0].x.equal(out.x)


@pytest.mark.parametrize("name", MERGES)
def test_merging_keeps_the_sum_of_sizes(name: str) -> None:
    t, hints = tokens()
    out, token_map = build(name)(t, hints, True)
    assert token_map is not None
    torch.testing.assert_close(out.size.sum(1), t.size.sum(1))
    torch.testing.assert_close(token_map.down(t.size), out.size)


def test_pruning_keeps_the_sum_of_what_it_kept() -> None:
    t, hints = tokens()
    out, token_map = build("TopK")(t, hints, True)
    assert isinstance(token_map, HardMap)
    kept = (token_map.slot < token_map.num_out).sum(1, keepdim=True)
    torch.testing.assert_close(out.size.sum(1), kept.float())
    assert kept.eq(32).all()


@every
def test_up_of_ones_is_one(name: str) -> None:
    t, hints = tokens((7, 9))
    _, token_map = build(name)(t, hints, True)
    assert token_map is not None
    m = token_map.down(t.x).shape[1]
    back = token_map.up(torch.ones(3, m, 2), torch.ones(3, 63, 2))
    torch.testing.assert_close(back, torch.ones(3, 63, 2))


@pytest.mark.parametrize("name", ["TopK", "EViT", "ToMe", "Windowed[TopK]", "Windowed[ToMe]"])
def test_down_of_up_is_identity_for_hard_maps(name: str) -> None:
    t, hints = tokens((8, 8))
    out, token_map = build(name)(t, hints, True)
    assert isinstance(token_map, HardMap)
    y = torch.randn(3, out.x.shape[1], 4)
    mean = token_map.down(token_map.up(y, t.x[..., :4])) / token_map.down(torch.ones(3, 64, 1))
    torch.testing.assert_close(mean, y)


def test_window_map_is_the_soft_map_of_every_window() -> None:
    share = torch.rand(2, 4, 3, 16)
    share = share / share.sum(2, keepdim=True)
    order = torch.arange(64)[torch.randperm(64)]
    window = WindowMap(share, order, 64)
    full = torch.zeros(2, 12, 64)
    for w in range(4):
        full[:, 3 * w : 3 * w + 3, order[16 * w : 16 * w + 16]] = share[:, w]
    soft = SoftMap(full)
    x, y = torch.randn(2, 64, 5), torch.randn(2, 12, 5)
    torch.testing.assert_close(window.down(x), soft.down(x))
    torch.testing.assert_close(window.up(y, x), soft.up(y, x))


@pytest.mark.parametrize(
    "plan", [dict(type="TopK", keep=1.0), dict(type="EViT", keep=64), dict(type="ToMe", r=0)]
)
def test_keep_all_is_dense(plan: dict) -> None:
    dense = small_vit().eval()
    reduced = small_vit(plan=[dict(span=(1, None), reduce=plan)]).eval()
    x = image((64, 64))
    torch.testing.assert_close(reduced(x)[0], dense(x)[0])


@every
def test_row_of_a_batch_is_the_image_alone(name: str) -> None:
    plan = [dict(span=(1, 3), reduce=SETTINGS[name])]
    model = small_vit(plan=plan, out_indices=(2, 4)).eval()
    x = image((64, 64), batch=3)
    for together, alone in zip(model(x), model(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@every
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_content_of_padding_changes_nothing(name: str, kind: str) -> None:
    if kind == "vit":
        model = small_vit(plan=[dict(span=(1, 3), reduce=SETTINGS[name])], out_indices=(2, 4))
        size, valid, strides = (64, 80), torch.tensor([[64, 80], [45, 52]]), (8, 8)
    else:
        step = dict(stage=2, span=(1, 2), reduce=SETTINGS[name])
        model = small_swin(plan=[step], out_indices=(0, 1, 2, 3), window_padding="masked")
        size, valid, strides = (128, 150), torch.tensor([[128, 150], [90, 101]]), (4, 8, 16, 32)
    model.eval()
    x = image(size)
    other = x.clone()
    other[1, :, valid[1, 0] :] = 7.0
    other[1, :, :, valid[1, 1] :] = -9.0
    first, second = (model.forward_tokens(i, valid)[0] for i in (x, other))
    for a, b, stride in zip(first, second, strides, strict=True):
        rows, cols = (-(-int(v) // stride) for v in valid[1])
        torch.testing.assert_close(a[0], b[0])
        torch.testing.assert_close(a[1, :, :rows, :cols], b[1, :, :rows, :cols])


@pytest.mark.parametrize("name", [None, "Windowed[TopK]", "Windowed[ToMe]", "Windowed[SparTa]"])
def test_amount_of_padding_changes_nothing(name: str | None) -> None:
    plan = None if name is None else [dict(stage=2, span=(1, 2), reduce=SETTINGS[name])]
    if name is not None:
        plan[0]["recover"] = dict(type="KNNRestore", k=1)
    model = small_swin(
        plan=plan, out_indices=(0, 1, 2, 3), window_padding="masked", window_shift="always"
    ).eval()
    small = image((100, 140), batch=1)
    large = torch.zeros(1, 3, 160, 192)
    large[:, :, :100, :140] = small
    valid = torch.tensor([[100, 140]])
    # Blocks between opening and closing see all windows' tokens: padding must stay invisible.
    for a, b in zip(
        model.forward_tokens(small, valid)[0], model.forward_tokens(large, valid)[0], strict=True
    ):
        h, w = a.shape[-2:]
        torch.testing.assert_close(a, b[:, :, :h, :w], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["TopK", "EViT", "ToMe", "Windowed[TopK]", "Windowed[ToMe]"])
def test_padding_never_wins_a_slot(name: str) -> None:
    t, hints = tokens()
    absent = torch.zeros(3, 8, 8, 1, dtype=torch.bool)
    absent[:, 5:] = True
    t = t._replace(size=t.size.masked_fill(absent.view(3, 64, 1), 0.0), padded=True)
    hints = hints._replace(score=hints.score + 5.0 * absent.view(3, 64))
    out, _ = build(name)(t, hints, True)
    windows = 1 if "Windowed" not in name else 4
    for row in out.size.view(3 * windows, -1):
        real = int((row > 0).sum())
        available = 40 if windows == 1 else None
        assert real == min(len(row), available or real)
    if name in ("TopK", "EViT"):
        assert (out.size[:, :32] > 0).all()


def test_tokens_of_size_zero_are_invisible() -> None:
    """Dropping padding tokens by hand gives what masking gives."""
    model = small_vit(num_registers=1).eval()
    x = image((64, 64), batch=1)
    valid = torch.tensor([[64, 40]])
    masked = model.forward_tokens(x, valid)[0][0]
    changed = x.clone()
    changed[..., 40:] = torch.randn(1, 3, 64, 24)
    torch.testing.assert_close(model.forward_tokens(changed, valid)[0][0], masked)
    assert not torch.allclose(model(x)[0], masked, atol=1e-4)


def test_one_token_of_size_three_is_three_equal_tokens() -> None:
    """Proportional attention (ToMe, arXiv:2210.09461, Eq. 1)."""
    from tokensparse.blocks.attention import AttentionInputs, SetAttention

    attn = SetAttention(16, 2).eval()
    x = torch.randn(1, 5, 16)
    three = torch.cat([x, x[:, 4:], x[:, 4:]], 1)
    bias = torch.tensor([[0.0, 0.0, 0.0, 0.0, 3.0]])
    bias[0, 4] = torch.tensor(3.0).log()
    one, _ = attn(x, AttentionInputs(key_bias=bias))
    many, _ = attn(three, AttentionInputs())
    torch.testing.assert_close(one, many[:, :5])
