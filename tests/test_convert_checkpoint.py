"""tools/convert_checkpoint.py: prints what it mapped, writes whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from tokensparse import load_released

ROOT = Path(__file__).parents[1]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/convert_checkpoint.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def released(folder: Path) -> Path:
    model = timm.models.VisionTransformer(embed_dim=32, depth=2, num_heads=2, num_classes=5)
    torch.save({"model": model.state_dict()}, folder / "in.pth")
    return folder / "in.pth"


def test_converts_and_loads_again(tmp_path: Path) -> None:
    weights = released(tmp_path)
    expected = load_released("timm-vit", weights, num_heads=2).state_dict()
    for name in ("out.safetensors", "out.pth"):
        done = run("timm-vit", str(weights), str(tmp_path / name), "--num-heads", "2")
        assert done.returncode == 0, done.stderr
        assert (
            "blocks.0.attn.qkv.weight (96, 32) -> stages.0.blocks.0.attn.qkv.weight" in done.stdout
        )
    found = load_file(tmp_path / "out.safetensors")
    other = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    assert found.keys() == other.keys() == expected.keys()
    assert all(torch.equal(found[k], v) and torch.equal(other[k], v) for k, v in expected.items())


class Hostile:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('ran')",)


def test_refused_and_nothing_written(tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    torch.save({"model": Hostile()}, tmp_path / "hostile.pth")
    cases = {
        ("timm-vit", str(tmp_path / "hostile.pth")): "exec",
        ("torchvision-swin", str(released(tmp_path))): "missing",
        ("timm-vit", str(tmp_path / "none.pth")): "none.pth",
    }
    for args, message in cases.items():
        done = run(*args, str(out))
        assert done.returncode != 0 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert run("timm-vit", str(released(tmp_path)), str(tmp_path / "out.txt")).returncode != 0
    assert not out.exists() and not list(tmp_path.glob("*.partial"))


def test_a_whole_detector_around_a_swin_gives_its_backbone(tmp_path: Path) -> None:
    """What is no part of the backbone is named, and left out."""
    backbones = pytest.importorskip("mmdet.models.backbones")
    sizes = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    state = {f"backbone.{k}": v for k, v in backbones.SwinTransformer(**sizes).state_dict().items()}
    torch.save({"state_dict": {**state, "rpn_head.x": torch.ones(2)}}, tmp_path / "in.pth")
    done = run("mmdet-swin", str(tmp_path / "in.pth"), str(tmp_path / "out.pth"))
    assert done.returncode == 0, done.stderr
    assert "rpn_head.x (2,) -> (no part of the backbone: left out)" in done.stdout
    line = "backbone.norm3.weight (128,) -> norm3.weight"
    assert line in done.stdout and "(joined" not in done.stdout
    found = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    expected = load_released("mmdet-swin", state).state_dict()
    assert found.keys() == expected.keys()
