"""Released models equal the tensors that the released codes gave (see the README beside those)."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokensparse import load_released
from tokensparse.tokens import HardMap, Trace

#: Largest difference, in standard deviations of the output, for every form of attention.
TOLERANCE = {"eager": 5e-5, "sdpa": 1e-3, "compiled": 1e-3}
FORMS = list(TOLERANCE)
STEPS = ((3, 137), (6, 96), (9, 67))


class Golden(NamedTuple):
    """One set of parity tensors.

    Attributes:
        weights: path of the released state dict.
        tensors: inputs and outputs.
        settings: hyper-parameters.
    """

    weights: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]

    @property
    def img(self) -> Tensor:
        return self.tensors["input"].float()


def read(folder: Path, name: str) -> Golden:
    settings = json.loads((folder / f"{name}.json").read_text())
    tensors = load_file(folder / f"{name}.io.safetensors")
    return Golden(folder / f"{name}.weights.safetensors", tensors, settings)


def agree(ours: Tensor, theirs: Tensor, form: str) -> None:
    difference = (ours - theirs).abs().max() / theirs.std()
    assert difference <= TOLERANCE[form]


def load_vit(golden: Golden, plan: Any, form: str) -> nn.Module:
    heads = golden.settings["num_heads"]
    return load_released("timm-vit", golden.weights, plan=plan, num_heads=heads, attention=form)


def last_tokens(backbone: nn.Module, img: Tensor) -> Tensor:
    """Tokens after the last block, before the final norm: what the final norm is given."""
    seen: list[Tensor] = []
    last = list(backbone.stages[0].blocks.values())[-1]
    feed = last.feed

    def record(x: Tensor) -> Tensor:
        seen.append(feed(x))
        return seen[-1]

    last.feed = record
    try:
        backbone.forward_tokens(img)
    finally:
        del last.feed
    return seen[-1]


def kept(trace: Trace, step: int) -> Tensor:
    """(B, M) which of the tokens present each kept token was."""
    token_map = trace.steps[step].map
    assert isinstance(token_map, HardMap)
    return token_map.members().int().argmax(2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "reducer"), [("evit_deit", "EViT"), ("topk_deit", "TopK")])
@torch.no_grad()
def test_pruning(goldens: Path, name: str, reducer: str, form: str) -> None:
    golden = read(goldens, name)
    plan = [dict(span=(b, None), reduce=dict(type=reducer, keep=k)) for b, k in STEPS]
    model = load_vit(golden, plan, form)
    agree(model(golden.img), golden.tensors["logits"], form)
    agree(last_tokens(model.backbone, golden.img), golden.tensors["last_tokens"], form)
    _, trace = model.backbone.forward_tokens(golden.img, collect=frozenset({"maps"}))
    for step, (block, keep) in enumerate(STEPS):
        wanted = golden.tensors[f"kept_block{block}"]
        assert (wanted[:, keep:] == -1).all()
        found = kept(trace, step)[:, :keep]
        if form == "eager":
            assert torch.equal(found, wanted[:, :keep])
        assert torch.equal(found.sort(1).values, wanted[:, :keep].sort(1).values)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_tome(goldens: Path, form: str) -> None:
    golden = read(goldens, "tome_deit")
    model = load_vit(golden, dict(every=dict(type="ToMe", r=13)), form)
    agree(model(golden.img), golden.tensors["logits"], form)
    agree(last_tokens(model.backbone, golden.img), golden.tensors["last_tokens"], form)
    _, trace = model.backbone.forward_tokens(golden.img, collect=frozenset({"maps"}))
    size = torch.cat([torch.ones(2, 1), trace.steps[-1].size[..., 0]], 1)
    assert torch.equal(size, golden.tensors["size"])
    source = None
    for record in trace.steps:
        assert isinstance(record.map, HardMap)
        members = record.map.members().float()
        source = members if source is None else members @ source
    wanted = golden.tensors["source"].float()
    assert torch.equal(source, wanted[:, 1:, 1:])
    assert wanted[:, 0, 0].all() and not wanted[:, 0, 1:].any() and not wanted[:, 1:, 0].any()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_sparseswin_classifier(goldens: Path, form: str) -> None:
    golden = read(goldens, "sparseswin_cls")
    heads = golden.settings["sparta_heads"]
    model = load_released("sparseswin", golden.weights, sparta_heads=heads, attention=form)
    assert sum(p.numel() for p in model.parameters()) == golden.settings["params"]
    agree(model(golden.img), golden.tensors["logits"], form)
    backbone, tokens = model.backbone, []
    handle = backbone.norm.register_forward_hook(lambda _, __, out: tokens.append(out))
    _, trace = backbone.forward_tokens(golden.img, collect=frozenset({"attn"}))
    handle.remove()
    agree(tokens[-1], golden.tensors["tokens"], form)
    attn = [record.attn for record in trace.blocks if record.stage == 3]
    assert len(attn) == 2
    for index, found in enumerate(attn):
        agree(found, golden.tensors[f"attn{index}"], form)
    l1, l2 = (sum(power(a).sum() for a in attn) for power in (torch.abs, torch.square))
    torch.testing.assert_close(l1, golden.tensors["attn_l1"], rtol=1e-5, atol=0)
    torch.testing.assert_close(l2, golden.tensors["attn_l2"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_sparseswin_encoder(goldens: Path, form: str) -> None:
    golden = read(goldens, "sparseswin_det")
    heads = golden.settings["sparta_heads"]
    model = load_released("sparseswin-det", golden.weights, sparta_heads=heads, attention=form)
    maps = model(golden.img)
    assert len(maps) == 4
    for index, found in enumerate(maps):
        agree(found, golden.tensors[f"output{index}"], form)
