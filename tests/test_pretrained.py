"""``init_cfg=dict(type='Pretrained', checkpoint=...)`` of our backbones, beside mmdet's Swin."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dense_models import build, dense_config
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS as ROOT_MODELS
from small import SWIN, VIT, image
from test_parity_dense import NARROW_SWIN, official_names, random_weights
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torch import Tensor, nn

from tokensparse import load_released
from tokensparse.backbones import SparseSwin, STViTSwin, SwinTransformer, VisionTransformer
from tokensparse.checkpoint import CheckpointError
from tokensparse.engine.whole_files import write_hashed

MAPS = (0, 1, 2, 3)
ARCH = dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))


def saved(folder: Path, state: dict[str, Tensor], **around: Any) -> str:
    path = folder / "weights.pth"
    torch.save({"state_dict": state, **around} if around else state, path)
    return str(path)


def started(model: nn.Module) -> nn.Module:
    model.init_weights()
    return model.eval()


def pretrained(path: str, **settings: Any) -> dict[str, Any]:
    return ConfigDict(type="Pretrained", checkpoint=path, **settings)


@torch.no_grad()
def assert_same_maps(a: nn.Module, b: nn.Module, size: tuple[int, int] = (200, 264)) -> None:
    for x, y in zip(a(image(size)), b(image(size)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [7, 4])
@pytest.mark.parametrize("names", ["official", "mmdet"])
def test_as_mmdets_swin(names: str, window: int, tmp_path: Path) -> None:
    """The same file starts theirs and ours; bias tables are interpolated to another window."""
    backbones = pytest.importorskip("mmdet.models.backbones")
    sizes = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=window)
    if names == "official":
        released = random_weights(TimmSwin(img_size=224, num_classes=10, **NARROW_SWIN))
        path = saved(tmp_path, official_names(released.state_dict()), epoch=3)
    else:
        other = random_weights(backbones.SwinTransformer(**{**sizes, "window_size": 7}))
        state = other.state_dict()
        state = {f"backbone.{k}": v for k, v in state.items() if not k.endswith("_index")}
        path = saved(tmp_path, state, meta=dict(epoch=3))
    theirs = backbones.SwinTransformer(
        convert_weights=names == "official", init_cfg=pretrained(path), **sizes
    )
    theirs.init_weights()
    theirs.eval()
    ours = SwinTransformer(
        ARCH,
        window_size=window,
        window_shift="always",
        out_indices=MAPS,
        init_cfg=pretrained(path),
    )
    assert_same_maps(started(ours), theirs)


def test_our_own_files(tmp_path: Path) -> None:
    """A backbone, a classifier and mmengine's training checkpoint with its history; a prefix."""
    torch.manual_seed(0)
    source = SwinTransformer(SWIN, out_indices=MAPS).eval()
    state = {
        k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in source.state_dict().items()
    }
    source.load_state_dict(state)
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    hub = dict(log_scalars={"train/loss": history}, runtime_info=dict(iter=2), resumed_keys={})
    files = {
        "backbone": (saved(tmp_path, state), {}),
        "detector": ({f"backbone.{k}": v for k, v in state.items()}, {}),
        "student": (
            {f"student.backbone.{k}": v for k, v in state.items()},
            dict(prefix="student."),
        ),
    }
    for name, (content, settings) in files.items():
        path = content
        if isinstance(content, dict):
            path = saved(tmp_path, {**content, "x.rpn": torch.ones(2)}, message_hub=hub)
        settings = dict(prefix="student.backbone") if name == "student" else settings
        ours = SwinTransformer(SWIN, out_indices=MAPS, init_cfg=pretrained(path, **settings))
        assert_same_maps(started(ours), source)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_timm_vit_at_another_size(class_token: bool, tmp_path: Path) -> None:
    """The position table is resized; a prefix token that ours lacks is left out."""
    theirs = random_weights(
        timm.models.VisionTransformer(embed_dim=48, depth=3, num_heads=3, num_classes=5)
    )
    path = saved(tmp_path, theirs.state_dict())
    settings = dict(
        arch=dict(embed_dim=48, depth=3, num_heads=3),
        img_size=(160, 128),
        class_token=class_token,
        out_indices=(2,),
    )
    ours = started(VisionTransformer(init_cfg=pretrained(path), **settings))
    expected = load_released(
        "timm-vit", theirs.state_dict(), num_heads=3, img_size=(160, 128), out_indices=(2,)
    )
    prefix = 1 - int(class_token)
    assert ours.pos_embed.allclose(expected.pos_embed[:, prefix:])
    own, other = ours.state_dict(), expected.state_dict()
    assert all(v.equal(other[k]) for k, v in own.items() if k.startswith(("stem", "stages")))


def test_sparse_swin_at_another_size(tmp_path: Path) -> None:
    settings = dict(
        arch=dict(num_tokens=5, token_dim=64, num_heads=4, depth=1), trunk=SWIN, out_indices=MAPS
    )
    source = random_weights(SparseSwin(img_size=128, **settings))
    path = saved(tmp_path, source.state_dict())
    ours = started(SparseSwin(img_size=(160, 96), init_cfg=pretrained(path), **settings))
    assert_same_maps(ours, source, (160, 96))


def test_stvit_r_starts_from_its_classifier(tmp_path: Path) -> None:
    """STViT-R as a classifier -> the backbone of a detector; only the norms of its maps are new."""
    arch = dict(SWIN, depths=(2, 2, 6, 2))
    source = random_weights(STViTSwin(arch, spec="released-cls"))
    state = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    path = saved(tmp_path, state, meta={})
    model = build("mask-rcnn", dense_config("mask-rcnn", "STViTSwin", init_cfg=pretrained(path)))
    own = model.backbone.state_dict()
    left = {
        k
        for k, v in own.items()
        if f"backbone.{k}" not in state or not v.equal(state[f"backbone.{k}"])
    }
    assert left == {f"norm{i}.{leaf}" for i in MAPS for leaf in ("weight", "bias")}


class Hostile:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('ran')",)


def test_refused(tmp_path: Path) -> None:
    state = SwinTransformer(SWIN, out_indices=MAPS).state_dict()
    path = saved(tmp_path, state)
    wide = dict(SWIN, embed_dim=32, num_heads=(2, 4, 8, 16))
    with pytest.raises(CheckpointError, match=r"of SwinTransformer's parameters are in .*None"):
        SwinTransformer(wide, out_indices=MAPS, init_cfg=pretrained(path)).init_weights()
    ema = pretrained(path, prefix="ema")
    with pytest.raises(CheckpointError, match="prefix='ema.'"):
        SwinTransformer(SWIN, out_indices=MAPS, init_cfg=ema).init_weights()
    none = pretrained(str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match=r"init_cfg.checkpoint: .*none.pth; to start from"):
        VisionTransformer(VIT, init_cfg=none).init_weights()
    torch.save({"state_dict": state, "meta": Hostile()}, path)
    with pytest.raises(CheckpointError, match="exec"):
        SwinTransformer(SWIN, out_indices=MAPS, init_cfg=pretrained(path)).init_weights()


def test_a_flipped_byte_is_seen(tmp_path: Path) -> None:
    """A checkpoint of a run has its hash beside it, and ``init_cfg`` asks for it, too."""
    path = Path(saved(tmp_path, SwinTransformer(SWIN, out_indices=MAPS).state_dict()))
    write_hashed(path, path.read_bytes())
    SwinTransformer(SWIN, out_indices=MAPS, init_cfg=pretrained(str(path))).init_weights()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        SwinTransformer(SWIN, out_indices=MAPS, init_cfg=pretrained(str(path))).init_weights()


def test_other_initialisers_stay(tmp_path: Path) -> None:
    """A list: the others first, the file last, as mmengine does it."""
    state = SwinTransformer(SWIN, out_indices=MAPS).state_dict()
    path = saved(tmp_path, {k: v for k, v in state.items() if "norm3" not in k})
    constant = dict(type="Constant", layer="LayerNorm", val=0.5)
    ours = ROOT_MODELS.build(
        dict(
            type="tokensparse.SwinTransformer",
            arch=SWIN,
            out_indices=MAPS,
            init_cfg=[constant, pretrained(path)],
        )
    )
    ours.init_weights()
    assert (ours.norm3.weight == 0.5).all() and (ours.norm0.weight == 1).all()
