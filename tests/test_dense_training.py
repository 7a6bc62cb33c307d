"""The quick dense configs at tiny scale: train, resume, test, draw, two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tools import CONFIG, ROOT, command

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

INSTANCES, SEMANTIC = "cascade-mask-rcnn", "upernet"
ARCH = "dict(embed_dim=8, depths=(1, 1, 6, 1), num_heads=(1, 1, 2, 2))"


def tiny(folder: Path, backbone: str, head: str) -> str:
    """A quick config with a narrower trunk, six scenes and two epochs, as users derive it."""
    trunk = f"trunk={ARCH}, arch=dict(_delete_=True, num_tokens=4, token_dim=64, num_heads=2)"
    sizes = trunk if backbone == "sparseswin" else f"arch={ARCH}"
    sizes = sizes.replace("dict(embed_dim", "dict(_delete_=True, embed_dim")
    scenes = f"data_root='{folder / 'scenes'}', scenes=dict(train=6, val=2)"
    data = f"dict(batch_size=2, dataset=dict({scenes}))"
    channels = "[8, 16, 32, 64]"
    if head == INSTANCES:
        parts = f"neck=dict(in_channels={channels})"
        ann = f"val_evaluator = dict(ann_file='{folder / 'scenes/annotations/val.json'}')\n"
        ann += "test_evaluator = val_evaluator\n"
    else:
        parts = f"decode_head=dict(in_channels={channels}), auxiliary_head=dict(in_channels=32)"
        ann = ""
    path = folder / f"{backbone}_{head}.py"
    path.write_text(
        f"_base_ = '{ROOT}/configs/quick/{backbone}_{head}_digit-scenes.py'\n"
        f"model = dict(backbone=dict({sizes}, init_cfg=None), {parts})\n"
        f"train_dataloader = {data}\nval_dataloader = {data}\ntest_dataloader = val_dataloader\n"
        f"visualizer = dict(name='{folder.name}-{backbone}')\n"  # else one for all tests
        f"{ann}train_cfg = dict(max_epochs=2)\n"
        "default_hooks = dict(visualization=dict(draw=True, interval=1), logger=dict(interval=1))\n"
    )
    return str(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "epoch_2.pth", weights_only=False)["state_dict"]


@pytest.mark.parametrize(
    ("backbone", "head", "metric"),
    [
        ("stvit-r-swin", INSTANCES, "bbox_mAP"),
        ("sparseswin", SEMANTIC, "mIoU"),
        ("swin", SEMANTIC, "mIoU"),
    ],
)
def test_train_test_and_draw(
    backbone: str, head: str, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, work = tiny(tmp_path, backbone, head), tmp_path / "work"
    out = command("train", config, "--work-dir", str(work), capsys=capsys)
    assert "epoch 2/2" in out and f"val {metric}" in out
    out = command(
        "test", config, str(work / "epoch_2.pth"), "--work-dir", str(work / "test"), capsys=capsys
    )
    assert out.strip().splitlines()[-1].startswith("test") and metric in out
    drawn = list(work.rglob("vis_image/*.png"))
    assert drawn, "mm's visualisation hook has drawn nothing"


VIEWS = """
tta_model = dict(type="SegTTAModel")
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=ratio, keep_ratio=True) for ratio in RATIOS],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
"""


def test_on_views_and_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """``--tta`` merges scales and flips, ``--show-dir`` draws; one plain view changes nothing."""
    config, work = tiny(tmp_path, "stvit-r-swin", SEMANTIC), tmp_path / "work"
    command("train", config, "--work-dir", str(work), capsys=capsys)
    found = {}
    flips = "(0.0, 1.0)"
    cases = {
        "plain": (),
        "one view": ("[1.0]", "(0.0,)"),
        "published": ("[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]", flips),
    }
    for case, told in cases.items():
        path, out = tmp_path / "tested.py", tmp_path / f"{case}.json"
        views = VIEWS.replace("RATIOS", told[0]).replace(flips, told[1]) if told else ""
        path.write_text(f"_base_ = '{config}'\n{views}")
        flags = ["--tta"] if told else ["--show-dir", str(tmp_path / "drawn")]
        flags += ["--work-dir", str(tmp_path / case), "--out", str(out)]
        flags += ["--cfg-options", f"visualizer.name={case}-{tmp_path.name}"]
        command("test", str(path), str(work / "epoch_2.pth"), *flags, capsys=capsys)
        found[case] = json.loads(out.read_text())
    assert found["plain"] == found["one view"] != found["published"]
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 2


def test_boxes_of_two_views(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """mmdet's own views where a config names none; masks, which it cannot merge, are refused."""
    config, work = tiny(tmp_path, "swin", INSTANCES), tmp_path / "work"
    command("train", config, "--work-dir", str(work), capsys=capsys)
    flags = ("--tta", "--work-dir", str(tmp_path / "test"))
    checkpoint = str(work / "epoch_2.pth")
    with pytest.raises(SystemExit, match="DetTTAModel merges boxes only"):
        command("test", config, checkpoint, *flags, capsys=capsys)
    boxes = tmp_path / "boxes.py"
    boxes.write_text(
        f"_base_ = '{config}'\n"
        "model = dict(roi_head=dict(mask_head=None, mask_roi_extractor=None))\n"
        "test_evaluator = dict(metric='bbox')\nval_evaluator = test_evaluator\n"
    )
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    torch.save({k: v for k, v in state.items() if "mask_head" not in k}, tmp_path / "boxes.pth")
    out = command("test", str(boxes), str(tmp_path / "boxes.pth"), *flags, capsys=capsys)
    assert "bbox_mAP" in out


def test_views_that_no_config_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tiny(tmp_path, "swin", SEMANTIC)
    flags = ("--tta", "--work-dir", str(tmp_path / "test"))
    with pytest.raises(SystemExit, match="the config names no tta_pipeline; mmseg's"):
        command("test", config, "none.pth", *flags, capsys=capsys)
    flags = ("--show-dir", str(tmp_path / "drawn"))
    with pytest.raises(SystemExit, match="names no default_hooks.visualization"):
        command("test", CONFIG, "none.pth", *flags, capsys=capsys)


def test_resume_gives_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Stopped after the first epoch and resumed: bit for bit what one run gives."""
    config = tiny(tmp_path, "stvit-r-swin", SEMANTIC)

    def train(work: Path, *more: str) -> None:
        command("train", config, "--work-dir", str(work), *more, capsys=capsys)

    train(tmp_path / "whole")
    stop = ("--cfg-options", "train_cfg.max_epochs=1")
    train(tmp_path / "parts", *stop)
    train(tmp_path / "parts", "--resume")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_two_processes(tmp_path: Path) -> None:
    """Torchrun and gloo: a detector with recovery trains in two processes."""
    config, work = tiny(tmp_path, "stvit-r-swin", INSTANCES), tmp_path / "work"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run += [str(ROOT / "tools/train.py"), config, "--launcher", "pytorch", "--work-dir", str(work)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    env["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 2/2") >= 1 and (work / "epoch_2.pth").is_file()
