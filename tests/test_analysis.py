"""Two counters that share no code agree, with each other and with published figures."""

import pytest
import torch
from small import small_swin, small_vit

from tokensparse.analysis import CountError, compare, count, peak_bytes
from tokensparse.backbones import SparseSwin, STViTDeiT, SwinTransformer, VisionTransformer
from tokensparse.interfaces import Reducer
from tokensparse.plan import build_part
from tokensparse.registry import MODELS, REDUCERS


@pytest.mark.parametrize(("tokens", "gmacs"), [(49, 4.396), (25, 4.239), (100, 4.738)])
def test_sparse_swin_is_the_released_cost(tokens: int, gmacs: float) -> None:
    backbone = dict(type="SparseSwin", arch=dict(num_tokens=tokens, token_dim=512))
    head = dict(type="LinearHead", num_classes=100)
    found = count(MODELS.build(dict(type="ImageClassifier", backbone=backbone, head=head)))
    assert round(found.macs / 1e9, 3) == gmacs
    if tokens == 49:
        assert found.params == 20_287_971


@pytest.mark.parametrize(("arch", "gmacs"), [("tiny", 1.247), ("small", 4.574), ("base", 17.472)])
def test_dense_deit_is_the_papers_cost(arch: str, gmacs: float) -> None:
    backbone = dict(type="VisionTransformer", arch=arch, class_token=False)
    model = dict(
        type="ImageClassifier", backbone=backbone, head=dict(type="LinearHead", num_classes=1000)
    )
    with torch.device("meta"):
        built = MODELS.build(model)
    assert round(count(built).macs / 1e9, 3) == gmacs


def test_tokens_in_and_out_of_every_block() -> None:
    plan = [dict(span=(1, 3), reduce=dict(type="EViT", keep=0.5), recover=dict(type="Scatter"))]
    rows = count(small_vit(plan=plan), 64).blocks
    assert [(r.tokens_in, r.tokens_out) for r in rows] == [
        (64, 64),
        (64, 33),
        (33, 33),
        (33, 64),
        (64, 64),
    ]
    rows = count(small_swin(), (100, 140)).blocks
    assert [r.tokens_in for r in rows][::2] == [875, 234, 63, 63, 20]


def test_fused_or_not_on_every_device() -> None:
    plan = dict(every=dict(type="ToMe", r=4))
    for build, size in (
        (lambda f: small_vit(plan=plan, attention=f), (64, 72)),
        (lambda f: small_swin(attention=f), (100, 140)),
    ):
        found = {
            (form, device): count(build(form), size, device)
            for form in ("eager", "sdpa", "compiled")
            for device in ("meta", "own")
            if (form, device) != ("compiled", "own")
        }
        assert len({c.macs for c in found.values()}) == 1
        assert len({c.modules for c in found.values()}) == 1


def test_whole_models_agree() -> None:
    for model in (
        SwinTransformer("tiny", out_indices=(0, 1, 2, 3)),
        SparseSwin("tiny", out_indices=(3,)),
    ):
        assert count(model, (200, 264)).macs > 1e9
    assert count(STViTDeiT("tiny", num_tokens=36)).tokens == (196,) * 4 + (36,) * 8
    distilled = VisionTransformer("tiny", distilled=True, num_registers=4)
    assert count(distilled).macs > 1e9


def test_a_wrong_formula_is_named() -> None:
    class Sloppy(Reducer):
        def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
            super().__init__(dim, num_heads, grid)
            self.inner = build_part(
                REDUCERS, dict(type="SparTa", num_tokens=4), dim=dim, num_heads=1, grid=grid
            )

        def num_out(self, n: int, n_start: int) -> int:
            return 4

        def forward(self, t, hints, want_map):  # type: ignore[no-untyped-def]
            return self.inner(t, hints, want_map)

    model = small_vit(plan=[dict(span=(1, None), reduce=dict(type=Sloppy))])
    with pytest.raises(CountError, match=r"plan.steps.0.reduce: .* were executed"):
        count(model, 64)


def test_timer_takes_turns() -> None:
    order = []
    found = compare(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1
    )
    assert order == ["a", "b"] * 4
    assert found["a"].p10 <= found["a"].median <= found["a"].p90


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts bytes of the CPU allocator")
def test_peak_memory_is_what_is_held_at_once() -> None:
    def call() -> None:
        a = torch.zeros(1000, 256)
        del a
        b = torch.zeros(500, 256)
        c = torch.zeros(700, 256)
        del b, c

    assert peak_bytes(call) == 1200 * 256 * 4
