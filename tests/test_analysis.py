"""Two counters that share no code agree, with each other and with published figures."""

import pytest
import torch
from small import small_swin, small_vit

from tokensparse.analysis import CountError, compare, count, peak_bytes
from tokensparse.analysis.executed import macs_of
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


def test_deit_with_class_token_is_the_sum_by_hand() -> None:
    backbone = dict(type="VisionTransformer", arch="small")
    head = dict(type="LinearHead", num_classes=1000)
    with torch.device("meta"):
        model = MODELS.build(dict(type="ImageClassifier", backbone=backbone, head=head))
    n, c, depth = 197, 384, 12
    attention = 2 * n * n * c
    by_hand = 196 * 768 * c + depth * (12 * n * c * c + attention) + c * 1000
    assert count(model).macs == by_hand
    assert round(by_hand / 1e9, 1) == 4.6
    assert round(depth * attention / 1e9, 2) == 0.36  # what counters that miss SDPA leave out


SPARTA = dict(type="SparTa", num_tokens=10)


@pytest.mark.parametrize("out_indices", [None, (2,), (4,), (1, 2, 4)])
def test_ways_back_of_the_plan_count_as_its_restore(out_indices: tuple[int, ...] | None) -> None:
    for span in ((1, 2), (1, None)):
        model = small_vit(plan=[dict(span=span, reduce=SPARTA)], out_indices=out_indices)
        for size in ((64, 64), (56, 72)):
            found = count(model, size)
            closed = [row for row in found.steps if row.event == "restore"]
            parts = {row.name: row.macs for row in found.modules}
            assert "plan.steps.0.recover" not in parts
            assert parts["plan.restore"] >= sum(row.macs for row in closed)
            if span == (1, 2):
                n = size[0] * size[1] // 64
                assert [(r.tokens_in, r.tokens_out, r.macs) for r in closed] == [
                    (10, n, 10 * n * 32)
                ]


@pytest.mark.parametrize("inner", [SPARTA, dict(type="TopK", keep=5), dict(type="ToMe", r=4)])
@pytest.mark.parametrize("recover", [None, dict(type="Scatter"), dict(type="AttentionRestore")])
def test_windowed_reducers(inner: dict[str, object], recover: dict[str, str] | None) -> None:
    reduce = dict(type="Windowed", window=4, reducer=inner)
    step = dict(stage=2, span=(1, 2 if recover else None), reduce=reduce, recover=recover)
    model = small_swin(plan=[step], out_indices=(0, 1, 2, 3))
    for size in ((128, 128), (100, 140)):
        assert next(row.event for row in count(model, size).steps) == "reduce"


def test_steps_and_blocks_add_up() -> None:
    plan = [dict(span=(1, 3), reduce=SPARTA, recover=dict(type="Scatter"))]
    found = count(small_vit(plan=plan), 64)
    assert [(r.event, r.tokens_in, r.tokens_out) for r in found.steps] == [
        ("reduce", 64, 10),
        ("recover", 10, 64),
    ]
    stem = next(row.macs for row in found.modules if row.name == "stem")
    assert found.macs == stem + sum(r.macs for r in found.blocks) + sum(r.macs for r in found.steps)


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


def test_the_callers_modes_change_nothing() -> None:
    model = small_vit(plan=dict(every=dict(type="ToMe", r=4)))
    wanted = count(model, 64)
    with torch.inference_mode():
        assert count(small_vit(plan=dict(every=dict(type="ToMe", r=4))), 64, "own") == wanted
    with torch.autocast("cpu", torch.bfloat16):
        assert count(model, 64, "own") == wanted
    assert count(torch.compile(model, backend="eager"), 64) == wanted
    model.train()
    model.stem.eval()
    count(model, 64, "own")
    assert model.training and not model.stem.training


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


def test_every_fused_attention_counts_alike() -> None:
    q, k = torch.zeros(2, 3, 10, 16, device="meta"), torch.zeros(2, 3, 14, 16, device="meta")
    names = [
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    ]
    for name in names:
        first = [a.name for a in getattr(torch.ops.aten, name).default._schema.arguments[:3]]
        assert first == ["query", "key", "value"]
        assert macs_of(name, (q, k, k), None) == 2 * (2 * 3 * 10 * 14 * 16)


def test_timer_takes_turns() -> None:
    order = []
    found = compare(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1
    )
    assert order == ["a", "b"] * 4
    a, b = found["a"], found["b"]
    assert a.p10 <= a.median <= a.p90
    assert a.cpu_p10 <= a.cpu_median <= a.cpu_p90
    assert a.ratio(b) == a.median / b.median


def test_peak_memory_is_what_is_held_at_once() -> None:
    def call() -> None:
        a = torch.zeros(1000, 256)
        del a
        b = torch.zeros(500, 256)
        c = torch.zeros(700, 256)
        del b, c

    assert peak_bytes(call, "cpu") == 1200 * 256 * 4
