"""STViT's settings: what changes nothing, does not add up or would be lost is refused by name."""

from typing import Any

import pytest
import torch
from small import image

from tokensparse import load_released
from tokensparse.backbones import STViTDeiT, STViTSwin, SwinTransformer
from tokensparse.checkpoint import CheckpointError
from tokensparse.checkpoint.names import released_name
from tokensparse.checkpoint.stvit import DENSE_RULES, join_queries
from tokensparse.ops.cross_windows import released_hidden
from tokensparse.reducers import STGM

NARROW = dict(embed_dim=8, depths=(1, 1, 6, 1), num_heads=(1, 1, 2, 2))
UNIT = ["dense", "stgm", "stgm", "local", "global", "recover"]


@pytest.mark.parametrize("target", [(6, 6), (3, 3), (6, 9), (15, 15)])
@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (8, 8), (8, 14), (1, 1), (2, 3), (5, 40)])
def test_the_released_mask_as_slices_set_it(grid: tuple[int, int], target: tuple[int, int]) -> None:
    """Zeros, one slice set, a border of the same value: what is all alike hides nothing."""
    below, right = -grid[0] % 7, -grid[1] % 7
    plain = torch.zeros(target, dtype=torch.bool)
    plain[-below:, -right:] = True
    hidden, border_hidden = released_hidden("released", grid, 7, target, torch.device("cpu"))
    if plain.all():
        assert hidden is None and not border_hidden
    else:
        assert border_hidden and torch.equal(hidden[0], plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(out_indices=(3,), use_global=True), "use_global=True changes nothing with spec='rel"),
        (dict(pad_mask=False), "pad_mask=False changes nothing with spec='paper'"),
        (dict(spec="released-cls", released_pad_mask=True), "changes nothing with spec='released-"),
        (dict(out_indices=(3,), pad_mask=False, released_pad_mask=True), "take one"),
        (dict(spec="released-cls", units=UNIT), "expected a list of units"),
        (dict(spec="released-cls", units=[]), "expected a list of units"),
        (dict(spec="released-cls", units="dense"), "units='dense'; expected a list of units"),
        (dict(arch=dict(embed_dim=8, depths=(1, 1), num_heads=(1, 1))), "has four stages"),
        (dict(arch={**NARROW, "depths": (1, 1, 0, 1)}, out_indices=(3,)), "stage 3 has 0 layers"),
        (dict(attention="fast"), "attention='fast'; legal"),
    ],
)
def test_settings_of_swin(settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        STViTSwin(**{"arch": NARROW, **settings})


def test_attention_of_any_backbone() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="attention='fast'"):
        SwinTransformer(arch=NARROW, attention="fast")


def test_settings_of_stgm() -> None:
    stgm = dict(dim=8, num_heads=1, grid=(14, 14), window=7)
    with pytest.raises(ValueError, match=r"1 rates for num_layers=2"):
        STGM(**stgm, drop_path=(0.1,))
    with pytest.raises(ValueError, match="set window"):
        STGM(**{**stgm, "window": None}, spec="released-det")
    arch = dict(embed_dim=16, depth=8, num_heads=2)
    with torch.device("meta"), pytest.raises(ValueError, match="2 rates for num_layers=3"):
        STViTDeiT(arch, stgm_layers=2, stgm=dict(num_layers=3), drop_path_rate=0.1)


def released(**settings: Any) -> dict[str, torch.Tensor]:
    """A narrow model's tensors by the released names."""
    torch.manual_seed(0)
    model = STViTSwin(NARROW, out_indices=(0, 1, 2, 3), **settings)
    state = {}
    for name, value in model.state_dict().items():
        theirs = released_name(name, DENSE_RULES)
        if ".attn.qkv." in theirs and theirs.split(".")[3] in ("3", "4") and "layers.2" in theirs:
            size = value.shape[0] // 3
            state[theirs.replace("qkv", "q")] = value[:size]
            state[theirs.replace("qkv", "kv")] = value[size:]
        else:
            state[theirs] = value
    return state


def test_another_image_size_keeps_every_tensor(recwarn: pytest.WarningsRecorder) -> None:
    """Tables of positions are resized in the forward pass; nothing starts afresh."""
    state = released(relative_pos=True)
    as_released = load_released("stvit-r-det", state)
    other = load_released("stvit-r-det", state, img_size=320)
    assert not [w for w in recwarn if "keep their initialisation" in str(w.message)]
    with torch.no_grad():
        for a, b in zip(as_released(image((320, 320))), other(image((320, 320))), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("tokens", [4, 9, 16])
def test_number_of_tokens_is_read_off_position_tables(tokens: int) -> None:
    model = load_released("stvit-r-det", released(relative_pos=True, num_tokens=tokens))
    assert model.plan.steps[0].reduce.tile ** 2 == tokens


def test_settings_that_would_lose_tensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match="leave no place for .*bias_table"):
        load_released("stvit-r-det", released(relative_pos=True), relative_pos=False)


@pytest.mark.parametrize("name", ["layers.2.blocks.3.attn", "layers.2.blocks.x.attn.q.weight"])
def test_foreign_names_do_not_break_the_reader(name: str) -> None:
    state = {name: torch.zeros(2)}
    assert join_queries(state) == state
    with pytest.raises(CheckpointError, match=name):
        load_released("stvit-r-det", {**released(), name: torch.zeros(2)})
