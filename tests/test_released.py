"""Loading refuses what is not what its name says; a plan takes what it needs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

import tokensparse
from tests.small import image
from tests.test_parity_dense import random_weights
from tokensparse import load_released
from tokensparse.checkpoint import SOURCES, CheckpointError, released_name, translate
from tokensparse.checkpoint.openmmlab import blocks_of_channels
from tokensparse.checkpoint.timm import TIMM_SWIN_RULES
from tokensparse.ops.resize import resize_mixing, resize_positions
from tokensparse.plan import PlanError

VIT = dict(img_size=64, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=5)
SWIN = dict(img_size=128, window_size=4, embed_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))
TOKENS = [dict(span=(1, None), reduce=dict(type="EViT", keep=0.5))]


def vit(**settings: Any) -> nn.Module:
    return random_weights(TimmViT(**{**VIT, **settings}))


def swin(**settings: Any) -> nn.Module:
    return random_weights(TimmSwin(**{**SWIN, "num_classes": 5, **settings}))


def vit_state() -> dict[str, Tensor]:
    return dict(vit().state_dict())


@torch.no_grad()
def same(ours: nn.Module, theirs: nn.Module, size: tuple[int, int]) -> bool:
    img = image(size)
    return torch.allclose(ours(img), theirs(img), atol=1e-5, rtol=0)


# -- overrides --


def test_misspelt_override_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'window_paddin'.*did you mean 'window_padding'"):
        load_released("timm-swin", swin().state_dict(), window_paddin="masked")
    with pytest.raises(ValueError, match="'num_head'.*did you mean 'num_heads'"):
        load_released("timm-vit", vit_state(), num_head=4)


def test_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'tim-vit'.*did you mean 'timm-vit'"):
        load_released("tim-vit", {})


def test_sizes_are_not_overridden() -> None:
    with pytest.raises(ValueError, match="patch_size is read off the tensors"):
        load_released("timm-vit", vit_state(), patch_size=16)


def test_heads() -> None:
    assert load_released("timm-vit", vit_state()).backbone.stages[0].blocks["0"].attn.num_heads == 1
    for heads in (3, 0):
        with pytest.raises(ValueError, match=f"num_heads={heads} does not divide"):
            load_released("timm-vit", vit_state(), num_heads=heads)
    with pytest.raises(ValueError, match="num_heads cannot be read off"):
        load_released("timm-vit", vit(embed_dim=48).state_dict())


@pytest.mark.parametrize("new", [96, (64, 128), 32])
def test_position_embeddings_are_resized(new: Any) -> None:
    """Built for another size, or built as released and given that size: the same logits."""
    state = vit_state()
    at_new = load_released("timm-vit", state, num_heads=4, img_size=new)
    as_released = load_released("timm-vit", state, num_heads=4)
    size = (new, new) if isinstance(new, int) else new
    assert same(at_new, as_released, size)
    table = at_new.backbone.pos_embed
    assert torch.equal(table[:, :1], state["pos_embed"][:, :1])
    wanted = resize_positions(state["pos_embed"][:, 1:], (8, 8), (size[0] // 8, size[1] // 8))
    assert torch.allclose(table[:, 1:], wanted)


def test_map_that_is_no_square() -> None:
    theirs = vit(img_size=(64, 40))
    with pytest.raises(CheckpointError, match="40 positions are no square.*img_size="):
        load_released("timm-vit", theirs.state_dict(), num_heads=4)
    ours = load_released("timm-vit", theirs.state_dict(), num_heads=4, img_size=(64, 40))
    assert same(ours, theirs, (64, 40))


def test_maps_of_a_classifier() -> None:
    with pytest.warns(UserWarning, match="norm0.weight"):
        model = load_released("timm-swin", swin().state_dict(), out_indices=(0, 3), img_size=128)
    assert [tuple(m.shape[1:]) for m in model(image((128, 128)))] == [(16, 32, 32), (128, 4, 4)]


# -- files --


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_wrong_file_is_refused(source: str) -> None:
    other = swin() if source == "timm-vit" else vit()
    with pytest.raises(CheckpointError, match=f"{source} weights: not what the name says. missing"):
        load_released(source, other.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.2.attn.qkv.weight"), "missing: blocks.2.attn.qkv.weight"),
        (lambda s: s.pop("blocks.0.mlp.fc1.weight"), "missing: blocks.0.mlp.fc1.weight"),
        (lambda s: s.pop("head.bias"), "missing: head.bias"),
        (lambda s: s.update(neck=torch.zeros(1)), "not expected: neck"),
        (
            lambda s: s.update({"blocks.1.mlp.fc2.bias": torch.zeros(3)}),
            r"misshapen: blocks.1.mlp.fc2.bias is \(3,\), expected \(64,\)",
        ),
        (
            lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.zeros(128, 64)}),
            r"misshapen: blocks.0.mlp.fc1.weight is \(128, 64\), expected \(256, 64\)",
        ),
        (
            lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64, 192)}),
            r"misshapen: patch_embed.proj.weight is \(64, 192\), expected 4 dimensions",
        ),
    ],
)
def test_first_wrong_keys_are_named(
    change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    state = vit_state()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_released("timm-vit", state, num_heads=4)


def test_missing_keys_carry_their_released_names() -> None:
    theirs = TorchvisionSwin([4, 4], 16, [2, 2], [1, 2], [4, 4])
    state = dict(theirs.state_dict())
    del state["features.3.1.mlp.3.bias"], state["features.2.norm.weight"]
    with pytest.raises(CheckpointError, match="features.2.norm.weight, features.3.1.mlp.3.bias"):
        load_released("torchvision-swin", state)


def small_files() -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """State dict and keywords by source; no more than two blocks anywhere."""
    swin_parts = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2), num_classes=5)
    torchvision = TorchvisionSwin([4, 4], 16, [1, 1], [1, 2], [7, 7], num_classes=5)
    distilled = VisionTransformerDistilled(**{**VIT, "depth": 2})
    sparse = released_sparse_swin(dense=False)[1]
    sparse.update({"fc_out.weight": torch.zeros(5, 32), "fc_out.bias": torch.zeros(5)})
    return {
        "timm-vit": (dict(distilled.state_dict()), dict(num_heads=4)),
        "timm-swin": (dict(TimmSwin(img_size=56, **swin_parts).state_dict()), {}),
        "torchvision-swin": (dict(torchvision.state_dict()), {}),
        "sparseswin": (sparse, dict(sparta_heads=4)),
        "sparseswin-det": (released_sparse_swin(dense=True)[1], dict(sparta_heads=4)),
    }


@pytest.mark.parametrize(
    "source", ["timm-vit", "timm-swin", "torchvision-swin", "sparseswin", "sparseswin-det"]
)
def test_whichever_key_is_wrong_is_named_as_in_the_file(source: str) -> None:
    state, keywords = small_files()[source]
    load_released(source, state, **keywords)
    for name in state:
        if name.endswith("relative_position_index"):
            continue
        without = {k: v for k, v in state.items() if k != name}
        with pytest.raises(CheckpointError, match=f"missing: {re.escape(name)}"):
            load_released(source, without, **keywords)
        with pytest.raises(CheckpointError, match=f"misshapen: {re.escape(name)} is"):
            load_released(source, {**state, name: torch.tensor(1.0)}, **keywords)


def test_averaged_weights_are_taken_when_asked_for(tmp_path: Path) -> None:
    state, averaged = vit_state(), {k: v + 1 for k, v in vit_state().items()}
    path = tmp_path / "training.pth"
    torch.save({"model": state, "model_ema": averaged}, path)
    for ema, wanted in ((False, state), (True, averaged)):
        model = load_released("timm-vit", path, num_heads=4, ema=ema)
        assert torch.equal(model.head.fc.bias, wanted["head.bias"])
    with pytest.raises(CheckpointError, match="holds no 'model_ema'"):
        load_released("timm-vit", state, num_heads=4, ema=True)
    with pytest.raises(CheckpointError, match="ema=True takes 'model_ema'"):
        load_released("timm-vit", {"model_ema": averaged}, num_heads=4)


class Callback:
    """A stranger's class inside a file."""


def test_files(tmp_path: Path) -> None:
    state = vit_state()
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "parallel.pth"
    )
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "plain.safetensors")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "no_ending")
    logits = [
        load_released("timm-vit", f, num_heads=4)(image((64, 64))) for f in tmp_path.iterdir()
    ]
    assert len(logits) == 5
    assert all(torch.equal(x, logits[0]) for x in logits)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": vit_state(), "hook": Callback()}, path)
    with pytest.raises(CheckpointError, match=r"evil.pth is refused.*test_released.Callback"):
        load_released("timm-vit", path)


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(CheckpointError, match=name):
            load_released("timm-vit", tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        load_released("timm-vit", tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_released("timm-vit", {"model": {"epoch": 3}})
    with pytest.raises(CheckpointError, match="no state dict: .* but 0 is there"):
        load_released("timm-vit", {0: torch.zeros(1)})


def test_derived_buffers_are_dropped() -> None:
    theirs = swin()
    state = dict(theirs.state_dict())
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 16, 16)
    state["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(16, 16)
    assert same(load_released("timm-swin", state, img_size=128), theirs, (128, 128))


# -- plans --


def test_plan_without_parameters_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    load_released("timm-vit", vit_state(), plan=TOKENS, num_heads=4)
    assert not [w for w in recwarn if "initialisation" in str(w.message)]


def test_plan_with_parameters_names_them() -> None:
    plan = [
        dict(
            stage=2,
            span=(1, 2),
            reduce=dict(type="TopK", keep=0.5),
            recover=dict(type="LinearRestore"),
        )
    ]
    with pytest.warns(UserWarning, match=r"plan.steps.0.recover.fc.weight") as caught:
        model = load_released("timm-swin", swin().state_dict(), plan=plan, img_size=128)
    assert "blocks" not in str(caught[0].message)
    blocks = model.backbone.stages[2].blocks
    names = {n.split(".")[0] for n, _ in blocks.named_parameters() if n.endswith("bias_table")}
    assert names == {"0", "1", "3"}


def test_replaced_blocks_are_dropped() -> None:
    step = dict(stage=2, span=(1, 3), reduce=dict(type="TopK", keep=0.5), replaces=(2,))
    model = load_released("timm-swin", swin().state_dict(), plan=[step], img_size=128)
    assert list(model.backbone.stages[2].blocks) == ["0", "1", "3"]


def test_wrong_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="did you mean 'span'"):
        load_released("timm-vit", vit_state(), plan=[dict(spn=(1, None), reduce=dict(type="TopK"))])


# -- names and orders --


def test_names_go_both_ways() -> None:
    names = swin().state_dict()
    renamed = translate(names, TIMM_SWIN_RULES)
    assert not renamed.extra
    assert [released_name(ours, TIMM_SWIN_RULES) for ours in renamed.state] == list(names)


def test_official_swin() -> None:
    """Its patch merging lies at the end of a layer; all else is timm's."""
    theirs = swin()
    state = {}
    for name, value in theirs.state_dict().items():
        name = re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", name)
        state[name.replace("head.fc.", "head.")] = value
    assert same(load_released("official-swin", {"model": state}, img_size=128), theirs, (128, 128))


def test_mmpretrain_swin() -> None:
    theirs = swin()
    state = {}
    for name, value in theirs.state_dict().items():
        if "downsample" in name:
            name = re.sub(r"layers\.(\d)", lambda m: f"layers.{int(m[1]) - 1}", name)
            value = value.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)
            assert torch.equal(blocks_of_channels(value).sort(-1).values, value.sort(-1).values)
        name = name.replace("layers.", "stages.").replace("attn.", "attn.w_msa.")
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        name = name.replace("embed.proj", "embed.projection")
        name = re.sub(r"^norm\.", "norm3.", name)
        state[name if name.startswith("head") else f"backbone.{name}"] = value
    assert same(load_released("mmpretrain-swin", state, img_size=128), theirs, (128, 128))


def test_mmpretrain_deit() -> None:
    theirs = random_weights(VisionTransformerDistilled(**{**VIT, "norm_layer": None}))
    state = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("blocks.", "layers.").replace("norm1", "ln1").replace("norm2", "ln2")
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        name = re.sub(r"^norm\.", "ln1.", name.replace("embed.proj", "embed.projection"))
        name = re.sub(r"^(head\w*)\.", r"head.layers.\1.", name)
        state[name if name.startswith("head.") else f"backbone.{name}"] = value
    assert same(load_released("mmpretrain-vit", state, num_heads=4), theirs, (64, 64))


def test_whole_detector_gives_its_backbone() -> None:
    backbones = pytest.importorskip("mmdet.models.backbones")
    theirs = random_weights(
        backbones.SwinTransformer(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    )
    state = {f"backbone.{k}": v for k, v in theirs.state_dict().items()}
    state["neck.lateral_convs.0.conv.weight"] = torch.zeros(1)
    ours = load_released("mmdet-swin", {"meta": {}, "state_dict": state}, out_indices=(1, 3))
    maps, wanted = ours(image((224, 224))), theirs(image((224, 224)))
    assert all(torch.allclose(a, wanted[i], atol=1e-5) for a, i in zip(maps, (1, 3), strict=True))
    with pytest.raises(ValueError, match="hold no classifier"):
        load_released("mmdet-swin", state, out_indices=None)


# -- SparseSwin --


def released_sparse_swin(dense: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """Ours with random weights, and its state dict in the released names."""
    trunk = dict(embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4))
    arch = dict(num_tokens=9, token_dim=32, num_heads=4)
    out_indices = (0, 1, 2, 3) if dense else None
    backbone = tokensparse.backbones.SparseSwin(arch, trunk, 128, out_indices, window_size=4)
    random_weights(backbone)
    rules = SOURCES["sparseswin-det" if dense else "sparseswin"].rules
    return backbone, {released_name(k, rules): v for k, v in backbone.state_dict().items()}


def test_sparse_swin_is_resized() -> None:
    backbone, state = released_sparse_swin(dense=False)
    state.update({"fc_out.weight": torch.randn(5, 32), "fc_out.bias": torch.randn(5)})
    model = load_released("sparseswin", state, sparta_heads=4, img_size=(96, 192))
    weight = model.backbone.plan.steps[0].reduce.spatial.weight
    wanted = resize_mixing(state["step4.convert_token.lin_t.weight"], (8, 8), (6, 12))
    assert torch.allclose(weight, wanted)
    (features,) = backbone(image((96, 192)))
    logits = features @ state["fc_out.weight"].T + state["fc_out.bias"]
    assert torch.allclose(model(image((96, 192))), logits, atol=1e-5)
    with pytest.raises(ValueError, match="bring their own plan"):
        load_released("sparseswin", state, plan=TOKENS, sparta_heads=4)
    with pytest.raises(CheckpointError, match="sparta_heads=5 does not divide"):
        load_released("sparseswin", state, sparta_heads=5)


def test_dense_sparse_swin_is_resized() -> None:
    backbone, state = released_sparse_swin(dense=True)
    model = load_released("sparseswin-det", state, sparta_heads=4, img_size=(96, 192))
    img = image((96, 192))
    for ours, wanted in zip(model(img), backbone(img), strict=True):
        assert torch.allclose(ours, wanted, atol=1e-5)
