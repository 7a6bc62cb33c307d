"""Every reducer x recovery x backbone in a Mask R-CNN of mmdet and an UPerNet of mmseg."""

from typing import Any

import pytest
import torch
from dense_models import BACKBONES, HEADS, SIZE, build, dense_config, train_step, without_gradient
from mmengine.optim import OptimWrapper
from small import SWIN, image
from test_contract import SETTINGS, reducers

from tokensparse.backbones import SwinTransformer, VisionTransformer
from tokensparse.registry import RECOVERIES

VIT_PLANS = {
    "every": dict(every=dict(type="ToMe", r=3)),
    "open to the end": [dict(span=(1, None), reduce=dict(type="EViT", keep=0.5))],
    "over a map": [dict(span=(1, 3), reduce=dict(type="TopK", keep=9))],
    "nested": [
        dict(span=(0, 4), reduce=dict(type="ToMe", r=9), recover=dict(type="KNNRestore")),
        dict(span=(2, 3), reduce=dict(type="TopK", keep=0.5), recover=dict(type="Scatter")),
    ],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "reducer" in metafunc.fixturenames:
        found = reducers(metafunc.config)
        metafunc.parametrize("reducer", found, ids=[getattr(r, "__name__", r) for r in found])
    if "recovery" in metafunc.fixturenames:
        metafunc.parametrize("recovery", [*sorted(RECOVERIES.module_dict), None])


def step(reducer: Any, recovery: str | None) -> dict[str, Any]:
    name = reducer if isinstance(reducer, str) else reducer.__name__
    found: dict[str, Any] = dict(span=(1, 2), reduce={"type": reducer, **SETTINGS.get(name, {})})
    return found if recovery is None else {**found, "recover": dict(type=recovery)}


@pytest.mark.parametrize("backbone", ["SwinTransformer", "VisionTransformer"])
@pytest.mark.parametrize("head", ["mask-rcnn", "upernet"])
def test_a_training_step(head: str, backbone: str, reducer: Any, recovery: str | None) -> None:
    """Maps of the right sizes, a gradient for every parameter, and a step that moves the plan's."""
    swin = backbone == "SwinTransformer"
    plan = [{**step(reducer, recovery), **(dict(stage=2) if swin else {})}]
    model = build(head, dense_config(head, backbone, plan=plan))
    seen: list[torch.Size] = []
    model.backbone.register_forward_hook(lambda m, i, outs: seen.extend(o.shape for o in outs))
    train_step(head, model)
    strides = (4, 8, 16, 32) if swin else (16,)
    channels = BACKBONES[backbone][1]
    assert seen == [
        (2, c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(channels, strides, strict=True)
    ]
    assert without_gradient(model.backbone) == []
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    optimizer.step()
    assert [n for n, p in model.backbone.named_parameters() if p.equal(before[n])] == []


@pytest.mark.parametrize("name", VIT_PLANS)
def test_plain_vit_gives_four_maps_to_mmseg(name: str) -> None:
    """Spans that are open at ``out_indices`` are closed there; mmseg's own neck makes levels."""
    model = dense_config("upernet", "VisionTransformer", plan=VIT_PLANS[name])
    model.backbone.out_indices = (0, 1, 2, 4)
    model.neck = dict(
        type="MultiLevelNeck", in_channels=[32] * 4, out_channels=64, scales=[4, 2, 1, 0.5]
    )
    built = build("upernet", model)
    maps = built.backbone(image(SIZE))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 6, 8)] * 4
    train_step("upernet", built)
    assert without_gradient(built.backbone) == []


@pytest.mark.parametrize("kind", ["STViTSwin", "SparseSwin", "SwinTransformer"])
@pytest.mark.parametrize("size", [(96, 128), (97, 131), (427, 640), (640, 427), (33, 200)])
def test_maps_of_any_size(kind: str, size: tuple[int, int]) -> None:
    """Rounded up at every halving, as mmdet's Swin does; SparseSwin's last is half of stage 2's."""
    model = build("mask-rcnn", dense_config("mask-rcnn", kind)).backbone.eval()
    with torch.no_grad():
        maps = model(image(size, 1))
    expected, side = [], [-(-s // 4) for s in size]
    for channels in BACKBONES[kind][1]:
        expected.append((1, channels, *side))
        side = [-(-s // 2) for s in side]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.isfinite().all() for m in maps)


def test_the_heads_are_those_of_the_libraries() -> None:
    """The contract would be empty if the shipped configs held our classes."""
    for head in HEADS:
        model = dense_config(head, "SwinTransformer")
        assert not model.type.startswith("tokensparse.")
        assert model.backbone.type == "tokensparse.SwinTransformer"


SWIN_PAIR = dict(arch=SWIN, img_size=128, window_size=4)


@pytest.mark.parametrize("frozen", [-1, 0, 1, 3, 4])
def test_frozen_stages_are_those_of_mmdet(frozen: int) -> None:
    """The same parameters keep their gradients, named through the released key map."""
    backbones = pytest.importorskip("mmdet.models.backbones")
    from tokensparse.checkpoint import SOURCES, translate

    sizes = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), window_size=4)
    theirs = backbones.SwinTransformer(frozen_stages=frozen, **sizes)
    theirs.train()
    ours = SwinTransformer(out_indices=(0, 1, 2, 3), frozen_stages=frozen, **SWIN_PAIR).train()
    flags = {n: torch.tensor(float(p.requires_grad)) for n, p in theirs.named_parameters()}
    rules = tuple(r._replace(change=None) for r in SOURCES["mmdet-swin"].rules)
    expected = {n for n, flag in translate(flags, rules).state.items() if flag}
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == expected
    assert (frozen == -1) == (len(expected) == len(flags))
    for i, stage in enumerate(ours.stages):
        assert all(block.training == (i >= frozen) for block in stage.blocks.values())


def test_steps_of_frozen_stages_are_frozen() -> None:
    recover = dict(type="AttentionRestore")
    reduce = dict(type="Windowed", window=4, reducer=dict(type="SparTa", num_tokens=3))
    plan = [dict(stage=i, span=(0, 0), reduce=reduce, recover=recover) for i in (0, 2)]
    swin = SwinTransformer(plan=plan, out_indices=(3,), frozen_stages=2, **SWIN_PAIR)
    early, late = swin.plan.steps
    assert not any(p.requires_grad for p in early.parameters())
    assert all(p.requires_grad for p in late.parameters()) and list(late.parameters())
    plan = [dict(span=(1, 3), reduce=dict(type="SparTa", num_tokens=9), recover=recover)]
    vit = dict(arch=dict(embed_dim=32, depth=5, num_heads=2), img_size=128, out_indices=(1, 4))
    one = VisionTransformer(plan=plan, frozen_stages=2, **vit)
    assert not any(p.requires_grad for p in one.plan.steps[0].reduce.parameters())
    assert all(p.requires_grad for p in one.plan.steps[0].recover.parameters())
    assert not one.norm1.weight.requires_grad and one.norm4.weight.requires_grad
    two = VisionTransformer(plan=plan, frozen_stages=4, **vit)
    assert not any(p.requires_grad for p in two.plan.steps[0].parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_activation_checkpointing_gives_the_same_gradients(backbone: str) -> None:
    found = []
    for active in (False, True):
        model = build("upernet", dense_config("upernet", backbone, with_cp=active))
        for dropout in (m for m in model.modules() if isinstance(m, torch.nn.Dropout2d)):
            dropout.p = 0.0
        total = train_step("upernet", model)
        found.append([total, *(p.grad for p in model.backbone.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
