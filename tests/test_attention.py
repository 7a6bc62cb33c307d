"""Three forms of attention, one function; windows and their masks."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from tokensparse.blocks.attention import AttentionInputs, SetAttention, WindowAttention, layout_mask
from tokensparse.ops.attention import (
    FASTEST,
    HIDDEN,
    FormChoice,
    attend,
    choose_form,
    kept_softmax,
)
from tokensparse.ops.windows import WindowLayout, partition, shifted_layout, unpartition

SHAPES = {
    "set": ((2, 1, 3, 17, 8), None),
    "key bias": ((2, 1, 3, 17, 8), (2, 1, 1, 1, 17)),
    "position bias": ((2, 4, 3, 16, 8), (1, 1, 3, 16, 16)),
    "window mask": ((2, 4, 3, 16, 8), (1, 4, 3, 16, 16)),
    "everything": ((2, 4, 3, 16, 8), (2, 4, 3, 16, 16)),
    "row per window": ((2, 4, 3, 16, 8), (2, 4, 1, 1, 16)),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("form", ["sdpa", "compiled"])
def test_forms_agree(case: str, form: str) -> None:
    torch._dynamo.reset()
    shape, bias_shape = SHAPES[case]
    qkv = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    bias = None if bias_shape is None else torch.randn(bias_shape, requires_grad=True)
    inputs = [*qkv] if bias is None else [*qkv, bias]
    outs = [attend(*qkv, bias, form=f)[0] for f in ("eager", form)]
    weight = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((out * weight).sum(), inputs) for out in outs]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_auto_is_one_of_them_and_wanted_attention_is_the_softmax() -> None:
    q, k, v = torch.randn(3, 2, 1, 3, 9, 8).unbind(0)
    auto, nothing = attend(q, k, v)
    out, attn = attend(q, k, v, want_attn=True)
    assert nothing is None and attn is not None
    torch.testing.assert_close(auto, out)
    torch.testing.assert_close(attn, ((q @ k.transpose(-1, -2)) / 8**0.5).softmax(-1))


def test_sdpa_bias_is_never_expanded_over_the_batch() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            seen.extend(
                o for o in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(o)
            )
            return out

    q, k, v = torch.randn(3, 64, 4, 3, 16, 8).unbind(0)
    bias = torch.randn(1, 4, 3, 16, 16)
    with Watch(), torch.no_grad():
        attend(q, k, v, bias, form="sdpa")
    biases = [t for t in seen if t.shape[-2:] == (16, 16)]
    assert biases
    assert all(t.untyped_storage().nbytes() == bias.untyped_storage().nbytes() for t in biases)


def test_kept_softmax() -> None:
    logits = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(kept_softmax(logits, torch.ones(5)), logits.softmax(-1))
    keep = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    out = kept_softmax(logits, keep)
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 3, 5))
    off = out[..., 0, [1, 4]]
    assert off.max() < 1e-5
    assert (out[..., 1, 1] > 1e-3).all()


@pytest.mark.parametrize("grid", [(8, 8), (7, 10), (3, 9)])
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (0, 2)])
def test_windows_come_back(grid: tuple[int, int], shift: tuple[int, int]) -> None:
    layout = WindowLayout(grid, 4, shift)
    x = torch.randn(2, grid[0] * grid[1], 5)
    windows = partition(x, layout)
    assert windows.shape == (2, layout.num_windows, 16, 5)
    assert unpartition(windows, layout).equal(x)


def test_shift_rules() -> None:
    assert shifted_layout((7, 9), 7, True, "auto").shift == (0, 3)
    assert shifted_layout((7, 9), 7, True, "always").shift == (3, 3)
    assert shifted_layout((14, 14), 7, False, "always").shift == (0, 0)


@pytest.mark.parametrize("grid", [(8, 8), (6, 9)])
def test_masked_windows_attend_only_where_they_should(grid: tuple[int, int]) -> None:
    """Against brute force: same window of the shifted grid, no wrap, no padding."""
    layout = WindowLayout(grid, 4, (2, 2))
    attn = WindowAttention(16, 2, 4, position_bias=False).eval()
    reference = SetAttention(16, 2).eval()
    reference.load_state_dict(attn.state_dict())
    x = torch.randn(1, grid[0] * grid[1], 16)
    given = AttentionInputs(layout=layout, mask=layout_mask(layout, True, x.device))
    out, _ = attn(x, given)
    row = torch.arange(grid[0]).repeat_interleave(grid[1])
    col = torch.arange(grid[1]).repeat(grid[0])
    window = torch.stack([(row + 2) // 4, (col + 2) // 4], -1)
    for i in range(len(row)):
        same = (window == window[i]).all(-1)
        bias = torch.where(same, 0.0, HIDDEN).unsqueeze(0)
        expected, _ = reference(x, AttentionInputs(key_bias=bias))
        torch.testing.assert_close(out[:, i], expected[:, i], atol=1e-5, rtol=1e-4)


def test_prepared_bias_changes_nothing_and_is_kept_for_two_sizes() -> None:
    from small import image, small_swin

    model = small_swin(out_indices=(3,)).eval()
    sizes = [(128, 128), (100, 140), (160, 96)]
    with torch.no_grad():
        before = [model(image(s))[0] for s in sizes]
        for s in sizes:
            model.prepare(s)
        for s, b in zip(sizes, before, strict=True):
            assert model(image(s))[0].equal(b)
    kept = [len(m._prepared) for m in model.modules() if isinstance(m, WindowAttention)]
    assert max(kept) == 2
    model.train()
    assert not any(m._prepared for m in model.modules() if isinstance(m, WindowAttention))


def test_what_was_prepared_is_forgotten_with_its_weights_and_device() -> None:
    """Loading, moving and casting leave no bias of other weights behind."""
    from small import image, small_swin

    model, other = small_swin(out_indices=(3,)).eval(), small_swin(out_indices=(3,)).eval()
    with torch.no_grad():
        for name, value in other.named_parameters():
            value += torch.randn_like(value) * name.endswith("bias_table")
        expected, x = other(image((128, 128)))[0], image((128, 128))
        model.prepare((128, 128))
        assert not model(x)[0].equal(expected)
        model.load_state_dict(other.state_dict())
        assert model(x)[0].equal(expected)
        model.prepare((128, 128))
        doubled = model.double()(x.double())[0]
        torch.testing.assert_close(doubled, other.double()(x.double())[0], rtol=0, atol=0)


def test_the_table_of_forms_follows_the_measurements() -> None:
    """Over the shapes of a case, no other form was faster by a tenth than the one chosen."""
    path = Path(__file__).parents[1] / "docs/results/attention_forms.json"
    cases: dict[FormChoice, Counter[str]] = {}
    for row in json.loads(path.read_text())["rows"]:
        choice = FormChoice(*(row[field] for field in FormChoice._fields))
        best = min(row["ms"].values())
        for form in ("eager", "sdpa"):
            cases.setdefault(choice, Counter())[form] += row["ms"][form] / best
    assert {choice.dtype for choice in cases} == {"fp32", "bf16", "fp16"}
    for choice, cost in cases.items():
        assert cost[FASTEST.get(choice, "sdpa")] <= 1.1 * min(cost.values()), (choice, cost)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_asks_the_table(dtype: torch.dtype) -> None:
    q = torch.randn(1, 1, 2, 4, 8, dtype=dtype)
    half = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
    for training in (False, True):
        expected = FASTEST.get(FormChoice("cpu", half, training, False), "sdpa")
        assert choose_form(q.requires_grad_(training), None) == expected
