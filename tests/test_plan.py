"""The plan's syntax, its counts, and what it refuses when built."""

from typing import Any

import pytest
from small import image, small_swin, small_vit

from tokensparse.plan import PlanError


def evit(**step: Any) -> dict[str, Any]:
    return dict(stage=0, span=(3, None), reduce=dict(type="EViT", keep=0.7), **step)


def test_counts_preview_every_block() -> None:
    model = small_vit(plan=[evit()])
    assert model.plan.counts(64) == [64, 64, 64, 46, 46]
    assert model.plan.counts((7, 9)) == [63, 63, 63, 46, 46]


@pytest.mark.parametrize(
    ("every", "counts"),
    [
        (dict(type="ToMe", r=8), [56, 48, 40, 32, 24]),
        (dict(type="ToMe", r=[9, 0, 4, 0, 1]), [55, 55, 51, 51, 50]),
        (dict(type="ToMe", r=8, inflection=-1.0), [48, 36, 28, 24, 24]),
        (dict(type="ToMe", r=60), [32, 16, 8, 4, 2]),
    ],
)
def test_tome_schedules(every: dict[str, Any], counts: list[int]) -> None:
    assert small_vit(plan=dict(every=every)).plan.counts(64) == counts


def test_published_tome_schedule() -> None:
    from tokensparse.reducers import ToMe

    rs = [s["r"] for s in ToMe.schedule(dict(type="ToMe", r=13, inflection=-1.0), 12)]
    assert rs == [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]


def test_counts_are_what_runs() -> None:
    step = dict(
        stage=2,
        span=(1, 2),
        reduce=dict(type="Windowed", window=4, reducer=dict(type="TopK", keep=5)),
    )
    model = small_swin(plan=[step], out_indices=(3,))
    _, trace = model.forward_tokens(image((100, 140)))
    assert trace.steps[0].size.shape[1] == model.plan.preview((25, 35))[5].out == 30


def test_dumbbells_repeat_and_nest() -> None:
    topk = dict(type="TopK", keep=0.5)
    plan = [
        dict(span=(0, 1), reduce=topk),
        dict(span=(2, 4), reduce=topk, recover=dict(type="KNNRestore")),
        dict(span=(3, 4), reduce=topk),
    ]
    model = small_vit(plan=plan)
    assert model.plan.counts(64) == [32, 64, 32, 16, 64]
    assert model(image((64, 64)))[0].isfinite().all()
    # A step still open inside a closing span is restored there.
    plan[2] = dict(span=(3, None), reduce=topk)
    assert small_vit(plan=plan).plan.counts(64) == [32, 64, 32, 16, 64]


REFUSED = [
    (
        [dict(span=(0, 2), reduce=dict(type="TopK")), dict(span=(1, 3), reduce=dict(type="TopK"))],
        "crosses span",
    ),
    ([evit(spam=1)], "unknown key 'spam'"),
    ([dict(spn=(3, None), reduce=dict(type="EViT"))], "did you mean 'span'"),
    ([dict(reduce=dict(type="Evit"))], "did you mean 'EViT'"),
    ([dict(reduce=dict(type="EViT", keeep=0.7))], "keeep"),
    ([dict(reduce=dict(type="EViT", keep=1.7))], "keep=1.7"),
    ([dict(reduce=dict(type="EViT", keep=65))], "keep at most 64"),
    ([dict(reduce=dict(type="EViT", dim=3))], "come from the backbone"),
    ([dict(reduce=dict(type="SparTa", num_tokens=65), span=(1, 2))], "allow_expansion"),
    ([dict(reduce=dict(type="SparTa", num_tokens=9, out_dim=64), span=(1, 2))], "stay open"),
    (
        [dict(reduce=dict(type="SparTa", num_tokens=9, out_dim=64), span=(1, None))],
        "without class token",
    ),
    ([dict(reduce=dict(type="TopK"), span=(3, 9))], "closes at block 9"),
    ([dict(reduce=dict(type="TopK"), span=(7, None))], "blocks 0..4"),
    ([dict(reduce=dict(type="TopK"), span=3)], "is no pair"),
    ([dict(stage=1, reduce=dict(type="TopK"))], "stages 0..0"),
    ([dict(reduce=dict(type="TopK"), inside=("global",), span=(1, 3))], "must fill the span"),
    (
        [dict(reduce=dict(type="TopK"), inside=("local", "global", "global"), span=(1, 3))],
        "tile no grid",
    ),
    ([dict(reduce=dict(type="TopK"), replaces=(0,))], "cannot replace"),
    ([dict(recover=dict(type="Scatter"))], "'reduce' is missing"),
    ([dict(reduce=dict(type="TopK"), recover=dict(type="Scater"))], "did you mean 'Scatter'"),
    (dict(every=dict(type="ToMe", r=[1, 2])), "there are 5 blocks"),
    (dict(every=dict(type="ToMe", r=4, inflection=3.0)), "-1.0..1.0"),
    (dict(evry=dict(type="ToMe")), "did you mean 'every'"),
    (dict(steps=[], restore=dict(type="AttentionRestore")), "must have none"),
    (
        [
            dict(reduce=dict(type="TopK")),
            dict(span=(2, None), reduce=dict(type="SparTa", num_tokens=4)),
        ],
        "took the grid away",
    ),
]


@pytest.mark.parametrize(("plan", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refused_when_built(plan: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message.replace("(", r"\(").replace(".", r"\.")):
        small_vit(plan=plan)


def test_class_token_score_without_class_token() -> None:
    plan = [dict(reduce=dict(type="EViT", score="cls_attn"))]
    assert small_vit(plan=plan)
    with pytest.raises(PlanError, match="no class token"):
        small_vit(plan=plan, class_token=False)
    with pytest.raises(PlanError, match="no class token"):
        small_swin(plan=plan)


def test_pairwise_matching_over_many_tokens() -> None:
    plan = [dict(reduce=dict(type="ToMe", r=8))]
    with pytest.raises(PlanError, match=r"more than 4096; wrap it: dict\(type='Windowed'"):
        small_vit(plan=plan, img_size=528)
    windowed = dict(type="Windowed", window=11, reducer=dict(type="ToMe", r=8))
    assert small_vit(plan=[dict(reduce=windowed)], img_size=528)
