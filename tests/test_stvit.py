"""STViT and STViT-R: published sizes, the released models' tensors, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small import image
from test_parity_goldens import FORMS, agree, read

from tokensparse import load_released
from tokensparse.backbones import STViTDeiT, STViTSwin
from tokensparse.blocks.attention import AttentionInputs
from tokensparse.checkpoint.names import released_name
from tokensparse.checkpoint.stvit import CLASSIFIER_RULES
from tokensparse.ops.cross_windows import (
    Asked,
    attend_windows,
    centred_windows,
    clamped_windows,
    window_looks,
)

NARROW = dict(embed_dim=8, depths=(2, 2, 6, 2), num_heads=(1, 2, 2, 4))


@pytest.mark.parametrize(
    ("arch", "settings", "params"),
    [
        ("small", dict(spec="released-cls"), 49_625_518),
        ("base", dict(spec="released-cls"), 87_812_336),
        ("small", dict(spec="released-cls", use_global=True), 49_639_342),
        ("base", dict(spec="released-cls", use_global=True), 87_830_768),
        ("small", dict(out_indices=(0, 1, 2, 3)), 48_857_862),
        ("base", dict(out_indices=(0, 1, 2, 3)), 86_789_128),
    ],
)
def test_released_parameter_counts(arch: str, settings: dict[str, Any], params: int) -> None:
    with torch.device("meta"):
        model = STViTSwin(arch, **settings)
    head = 0 if "out_indices" in settings else 1000 * model.num_features + 1000
    assert sum(p.numel() for p in model.parameters()) + head == params


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["stvit_r_swin_cls", "stvit_r_swin_cls_global"])
@torch.no_grad()
def test_released_classifier(goldens: Path, name: str, form: str) -> None:
    golden = read(goldens, name)
    heads = tuple(golden.settings["num_heads"])
    model = load_released("stvit-r-cls", golden.weights, num_heads=heads, attention=form)
    assert sum(p.numel() for p in model.parameters()) == golden.settings["params"]
    seen: dict[str, torch.Tensor] = {}

    def keep(key: str, value: torch.Tensor) -> None:
        seen[key] = value

    backbone = model.backbone
    for index, step in enumerate(backbone.plan.steps):
        step.recover.register_forward_hook(
            lambda _, args, __, key=f"semantic_unit{index}": keep(key, args[0].x)
        )
    backbone.stages[3].transition.register_forward_hook(
        lambda _, args, __: keep("stage3_tokens", args[0])
    )
    agree(model(golden.img), golden.tensors["logits"], form)
    agree(backbone(golden.img)[0], golden.tensors["features"], form)
    assert len(seen) == 4
    for key, value in seen.items():
        agree(value, golden.tensors[key], form)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_released_detector(goldens: Path, form: str) -> None:
    golden = read(goldens, "stvit_r_swin_det")
    model = load_released(
        "stvit-r-det", golden.weights, pad_mask=True, released_pad_mask=True, attention=form
    )
    assert sum(p.numel() for p in model.parameters()) == golden.settings["params"]
    for rows, cols in golden.settings["sizes"]:
        maps = model(golden.tensors[f"input_{rows}x{cols}"].float())
        for index, found in enumerate(maps):
            agree(found, golden.tensors[f"output{index}_{rows}x{cols}"], form)


@pytest.mark.parametrize("target", ["released-det", "released-cls"])
def test_classification_weights_start_detection_and_back(
    goldens: Path, tmp_path: Path, target: str
) -> None:
    """Every parameter that both have; only the norms of maps and of the pooled tokens stay."""
    given = "cls" if target == "released-det" else "det"
    golden = read(goldens, f"stvit_r_swin_{given}")
    source = load_released(f"stvit-r-{given}", golden.weights)
    source = getattr(source, "backbone", source)
    init = dict(
        type="tokensparse.ReleasedInit", kind=f"stvit-r-{given}", weights=str(golden.weights)
    )
    arch = dict(embed_dim=source.stages[0].blocks["0"].attn.proj.in_features)
    arch["depths"] = tuple(spec.depth for spec in source.plan.stages)
    arch["num_heads"] = tuple(spec.num_heads for spec in source.plan.stages)
    maps = (0, 1, 2, 3) if target == "released-det" else None
    model = STViTSwin(arch, spec=target, out_indices=maps, init_cfg=init)
    model.init_weights()
    theirs, ours = source.state_dict(), model.state_dict()
    for name, value in ours.items():
        if name.startswith("norm"):
            assert name not in theirs
        else:
            assert torch.equal(value, theirs[name]), name


@torch.no_grad()
def test_position_bias_of_semantic_tokens() -> None:
    """The option relative_pos: tables in local and global blocks, their effect, other sizes."""
    torch.manual_seed(0)
    model = STViTSwin(NARROW, spec="released-cls", relative_pos=True).eval()
    tables = {n: p for n, p in model.named_parameters() if n.endswith("bias_table")}
    local, whole = (f"stages.2.blocks.{i}.attn.relative_position_bias_table" for i in (3, 4))
    assert tables[local].shape == (25, 2) and tables[whole].shape == (121, 2)
    attn, x = model.stages[2].blocks["4"].attn, torch.randn(1, 36, 32)
    given = AttentionInputs(grid=(6, 6))
    bias = torch.empty(2, 36, 36)
    for i in range(36):
        for j in range(36):
            offset = (i // 6 - j // 6 + 5) * 11 + i % 6 - j % 6 + 5
            bias[:, i, j] = tables[whole][offset]
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    expected = ((q @ k.transpose(-1, -2) / 4 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attn(x, given)[0], attn.proj(expected), atol=1e-5, rtol=1e-4)
    for size in ((224, 224), (160, 264)):
        assert model(image(size))[0].isfinite().all()
    with pytest.raises(ValueError, match="changes nothing"):
        STViTSwin(NARROW, relative_pos=True)


def test_released_names_of_the_position_bias() -> None:
    model = STViTSwin(NARROW, spec="released-cls", relative_pos=True)
    ours = model.state_dict()
    theirs = {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)}
    for name, value in ours.items():
        released = released_name(name, CLASSIFIER_RULES)
        if re.fullmatch(r"layers\.2\.blocks\.[34]\.attn\.qkv\..*", released):
            theirs[released.replace("qkv", "q")] = value[: len(value) // 3]
            theirs[released.replace("qkv", "kv")] = value[len(value) // 3 :]
        else:
            theirs[released] = value
    assert sum("relative_position_bias_table" in name for name in theirs) == 2 + 2 + 3 + 2
    loaded = load_released("stvit-r-cls", theirs)
    assert loaded.backbone.relative_pos
    for name, value in loaded.backbone.state_dict().items():
        assert torch.equal(value, ours[name]), name


def test_wrong_heads_and_wrong_files_are_refused(goldens: Path) -> None:
    golden = read(goldens, "stvit_r_swin_det")
    with pytest.raises(ValueError, match="bias tables say"):
        load_released("stvit-r-det", golden.weights, num_heads=(1, 2, 4, 4))
    with pytest.raises(ValueError, match="missing"):
        load_released("stvit-r-cls", golden.weights)
    with pytest.raises(ValueError, match="not what the name says"):
        load_released("stvit-r-det", read(goldens, "sparseswin_det").weights)


@pytest.mark.parametrize("tokens", [16, 36, 64, 100])
def test_stvit_deit_counts(tokens: int) -> None:
    with torch.device("meta"):
        model = STViTDeiT("tiny", num_tokens=tokens)
    assert model.plan.counts(196) == [196] * 4 + [tokens] * 8
    assert list(model.stages[0].blocks) == ["0", "1", "2", "3", "6", "7", "8", "9", "10", "11"]


@pytest.mark.parametrize(("tokens", "base"), [(4, None), (9, None), (16, None), (9, 1)])
def test_stvit_swin_counts_and_any_size(tokens: int, base: int | None) -> None:
    model = STViTSwin(NARROW, num_tokens=tokens, base_layers=base).eval()
    first = 2 if base is None else base
    assert model.plan.counts((56, 56))[4:] == [196] * first + [4 * tokens] * (8 - first)
    assert [row.kind for row in model.plan.preview((56, 56))][-2:] == ["global", "global"]
    for size in ((224, 224), (200, 264), (96, 64)):
        assert model(image(size))[0].isfinite().all()


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_stgm_of_more_layers(layers: int) -> None:
    arch = dict(embed_dim=16, depth=8, num_heads=2)
    model = STViTDeiT(arch, num_tokens=9, base_layers=2, stgm_layers=layers, img_size=112)
    assert len(model.plan.steps[0].reduce.layers) == layers
    assert model(image((112, 112)))[0].shape == (2, 16)


def test_a_unit_list_of_ones_own() -> None:
    units = [
        ["dense", "dense", "stgm", "stgm", "global", "recover"],
        ["stgm", "stgm", "local", "recover"],
    ]
    arch = dict(NARROW, depths=(2, 2, 10, 2))
    model = STViTSwin(arch, units=units, out_indices=(2, 3)).train()
    kinds = [row.kind for row in model.plan.preview((56, 56))][4:14]
    assert kinds == [
        *["window"] * 2,
        *["replaced"] * 2,
        "global",
        *["replaced"] * 3,
        "local",
        "replaced",
    ]
    maps = model(image((200, 264)))
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


REFUSED = [
    (dict(units=[["dense", "stgm", "stgm", "recover"]]), "must add up"),
    (dict(units=[["dense", "stgm", "global", "dense", "global", "recover"]]), "a unit is dense"),
    (dict(units=[["dense", "stgm", "stgm", "locl", "global", "recover"]]), "unknown layer 'locl'"),
    (dict(spec="paper"), "returns no maps"),
    (dict(spec="papr"), "legal"),
    (dict(num_tokens=7), "square"),
    (dict(shortcut=True), "shortcut=True changes nothing with spec='released-det'"),
    (dict(base_layers=2), "take spec 'paper'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STViTSwin(NARROW, out_indices=(2, 3), **settings)


def test_depths_without_default_units() -> None:
    with pytest.raises(ValueError, match="no multiple of 6"):
        STViTSwin(dict(NARROW, depths=(2, 2, 8, 2)), out_indices=(3,))
    with pytest.raises(ValueError, match="need 7 layers, but stage 3 has 6"):
        STViTSwin(NARROW, base_layers=5)


@pytest.mark.parametrize("border_hidden", [True, False])
def test_windows_of_keys_against_brute_force(border_hidden: bool) -> None:
    """Every window sees its keys, one by one."""
    torch.manual_seed(0)
    q, kv = torch.randn(2, 2, 3, 2, 4, 8), torch.randn(2, 8, 12, 2, 2, 8)
    border, hidden = torch.randn(2, 2, 8), torch.rand(2, 8, 12) > 0.8
    for where in (centred_windows((2, 3), 4, 7), clamped_windows((8, 12), 4, 6)):
        asked = Asked(q, kv, where, border, hidden, border_hidden)
        found, looks = attend_windows(asked), window_looks(asked)
        for r, row in enumerate(where.rows):
            for s, col in enumerate(where.cols):
                for b in range(2):
                    keys, places = [], []
                    for i in range(row, row + where.side):
                        for j in range(col, col + where.side):
                            if 0 <= i < 8 and 0 <= j < 12:
                                if not hidden[b, i, j]:
                                    places.append((len(keys), i, j))
                                    keys.append(kv[b, i, j])
                            elif not border_hidden:
                                keys.append(border)
                    k, v = torch.stack(keys).permute(1, 2, 0, 3)
                    attn = (q[b, r, s] @ k.transpose(1, 2) / 8**0.5).softmax(-1)
                    torch.testing.assert_close(found[b, r, s], attn @ v, atol=1e-5, rtol=1e-4)
                    seen = torch.zeros(4, 8, 12)
                    for key, i, j in places:
                        seen[:, i, j] = attn[:, :, key].mean(0)
                    torch.testing.assert_close(looks[b, r, s], seen, atol=1e-5, rtol=1e-4)
