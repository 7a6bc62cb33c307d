"""Our detection and segmentation configs, and a stranger's with two lines changed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_models import shipped
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn

from tokensparse import load_released
from tokensparse.analysis.executed import executed
from tokensparse.backbones import check_fit
from tokensparse.checkpoint import SOURCES, CheckpointError, released_name
from tokensparse.checkpoint.stvit_detector import head_shapes
from tokensparse.registry import MODELS

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path
    for task in ("coco", "ade20k-512x512")
    for path in ROOT.glob(f"configs/*/*_{task}.py")
    if "_base_" not in path.parts
)
PHOTOS = [(427, 640), (640, 427)]
NARROW = dict(embed_dim=16, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8))


@pytest.fixture(autouse=True)
def _default_scope_is_put_back() -> Iterator[None]:
    """A runner leaves its scope behind."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def on_meta(cfg: Config) -> nn.Module:
    """The model of a config, without weights."""
    library = cfg.default_scope
    pytest.importorskip(f"{library}.utils").register_all_modules(init_default_scope=False)
    MMLogger.get_current_instance().setLevel("ERROR")
    with DefaultScope.overwrite_default_scope(library), torch.device("meta"):
        return MODELS.build(cfg.model).eval()


class Levels(nn.Module):
    """What a detector computes before its heads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, img: Tensor) -> Any:
        return self.model.extract_feat(img)


def test_all_configs_are_here() -> None:
    names = {path.name for path in CONFIGS}
    for size in "sb":
        for method in ("stvit-r-swin", "swin"):
            assert f"{method}-{size}_cascade-mask-rcnn_ms-3x_coco.py" in names
            assert f"{method}-{size}_upernet_240k_ade20k-512x512.py" in names
    assert len(names) == 15


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds_whole_and_its_parts_fit(path: Path) -> None:
    """Full size: the maps reach neck and heads; costs in the header are those that are counted."""
    cfg = Config.fromfile(path)
    check_fit(cfg.model)
    model = on_meta(cfg)
    assert type(model.backbone).__module__.startswith("tokensparse.")
    levels = model.extract_feat(torch.empty(1, 3, 96, 128, device="meta"))
    assert len(levels) == (5 if cfg.default_scope == "mmdet" else 4)
    if cfg.default_scope == "mmseg":
        with DefaultScope.overwrite_default_scope("mmseg"):
            assert model.decode_head(levels).shape[:2] == (1, 150)
    size = (800, 1280) if cfg.default_scope == "mmdet" else (512, 512)
    found = executed(Levels(model), torch.empty(1, 3, *size, device="meta"))
    macs = sum(v for name, v in found.items() if name.startswith("model.backbone."))
    parameters = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    cost = f"backbone {parameters:.1f} M parameters, {macs / 1e9:.1f} GMACs at"
    assert cost in " ".join(path.read_text().split())


@pytest.mark.parametrize("size", ["s", "b"])
def test_macs_inside_the_detector_are_those_of_analyze(size: str, tmp_path: Path) -> None:
    path = ROOT / f"configs/stvit/stvit-r-swin-{size}_cascade-mask-rcnn_ms-3x_coco.py"
    out = tmp_path / "cost.json"
    command = ["tools/analyze.py", str(path), "--shape", "427", "640", "--json", str(out)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    (told,) = json.loads(out.read_text())
    model = on_meta(Config.fromfile(path))
    found = executed(Levels(model), torch.empty(1, 3, 427, 640, device="meta"))
    inside = sum(v for name, v in found.items() if name.startswith("model.backbone."))
    assert inside == told["macs"] and inside < 0.8 * told["dense"]["macs"]
    assert sum(found.values()) > inside


def coco(folder: Path) -> None:
    """Four pictures of two boxes with polygons, and all of COCO's classes."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(4):
        Image.fromarray(pixels((96, 128), i)).save(folder / f"images/{i}.jpg")
        images.append(dict(id=i, file_name=f"{i}.jpg", height=96, width=128))
        for j, (x, y, w, h) in enumerate([(10, 10, 50, 60), (64, 20, 56, 70)]):
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=j + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[polygon],
                )
            )
    from mmdet.datasets import CocoDataset

    classes = CocoDataset.METAINFO["classes"]
    categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
    (folder / "instances.json").write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def ade20k(folder: Path) -> None:
    """Four pictures with classes 0 (none) to 3."""
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(pixels((96, 128), i)).save(folder / f"images/{i}.jpg")
        classes = np.tile(np.arange(128, dtype=np.uint8) // 32, (96, 1))
        Image.fromarray(classes).save(folder / f"annotations/{i}.png")


def pixels(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def three_iterations(cfg: Config, data: Path, work: Path) -> None:
    """Small data, one process, plain batch norm, few proposals: what a test needs."""
    det = cfg.default_scope == "mmdet"
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg[name]
        loader.update(batch_size=2 if name[0:2] == "tr" else 1, num_workers=0)
        loader.persistent_workers = False
        loader.dataset.data_root = str(data)
        if det:
            loader.dataset.update(ann_file="instances.json", data_prefix=dict(img="images/"))
        else:
            prefix = dict(img_path="images", seg_map_path="annotations")
            loader.dataset.data_prefix = prefix
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline):
        for transform in pipeline:
            if transform.type in ("Resize", "RandomResize", "RandomChoiceResize"):
                transform.update(scale=(128, 96))
    cfg.val_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=3, val_interval=3)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    cfg.default_hooks.logger.interval = 1
    if det:
        cfg.model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
        cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.ann_file = str(data / "instances.json")
    else:
        cfg.crop_size = (96, 128)
        cfg.model.data_preprocessor.size = (96, 128)
        for transform in cfg.train_dataloader.dataset.pipeline:
            if transform.type == "RandomCrop":
                transform.crop_size = (96, 128)
    cfg.merge_from_dict(dict(work_dir=str(work), launcher="none", log_level="ERROR"))
    cfg.experiment_name = work.name
    plain_batch_norm(cfg.model)


def plain_batch_norm(value: Any) -> None:
    if isinstance(value, dict):
        if value.get("type") == "SyncBN":
            value["type"] = "BN"
        for inner in value.values():
            plain_batch_norm(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            plain_batch_norm(inner)


#: Somebody's config -> what he changes beside ``custom_imports`` and the backbone.
STRANGERS = {
    "mask-rcnn": ("mmdet", "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py", ""),
    "cascade": (
        "mmdet",
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
        "model['neck'] = dict(in_channels=[96, 192, 384, 768])\n",
    ),
    "upernet": (
        "mmseg",
        "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
        "",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_two_lines_of_a_strangers_config(name: str, tmp_path: Path) -> None:
    """Built, trained for 3 iterations, evaluated, then a photo each way through the inferencer."""
    library, base, more = STRANGERS[name]
    path = tmp_path / "stranger.py"
    path.write_text(
        f"_base_ = {str(shipped(library, base))!r}\n"
        "custom_imports = dict(imports=['tokensparse'])\n"
        "model = dict(backbone=dict(_delete_=True, type='tokensparse.STViTSwin', arch='tiny', "
        "out_indices=(0, 1, 2, 3)))\n" + more
    )
    cfg = Config.fromfile(path)
    data = tmp_path / "data"
    (coco if library == "mmdet" else ade20k)(data)
    work = tmp_path / f"work_{name}"
    three_iterations(cfg, data, work)
    with DefaultScope.overwrite_default_scope(library):
        runner = Runner.from_cfg(cfg)
        before = runner.model.backbone.stem.conv1.weight.detach().clone()
        runner.train()
    assert not runner.model.backbone.stem.conv1.weight.equal(before)
    metrics = runner.message_hub.log_scalars
    wanted = "val/coco/segm_mAP" if library == "mmdet" else "val/mIoU"
    assert wanted in metrics
    infer(cfg, str(work / "iter_3.pth"))


def infer(cfg: Config, weights: str | None) -> None:
    """A photo each way through mm's own inferencer."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if cfg.default_scope == "mmdet":
            from mmdet.apis import DetInferencer

            found = DetInferencer(cfg, weights, device="cpu", show_progress=False)
            for size in PHOTOS:
                out = found(pixels(size), return_datasamples=True, no_save_vis=True)
                result = out["predictions"][0]
                assert result.ori_shape == size
                assert result.pred_instances.masks.shape[1:] == size
        else:
            from mmseg.apis import MMSegInferencer

            found = MMSegInferencer(cfg, weights, device="cpu")
            found.show_progress = False
            for size in PHOTOS:
                result = found(pixels(size), return_datasamples=True)
                assert result.pred_sem_seg.data.shape == (1, *size)


@pytest.mark.parametrize("task", ["cascade-mask-rcnn_ms-3x_coco", "upernet_240k_ade20k-512x512"])
def test_inferencers_run_our_configs(task: str) -> None:
    """Our own files, with a narrow backbone and small images."""
    cfg = Config.fromfile(ROOT / f"configs/stvit/stvit-r-swin-s_{task}.py")
    cfg.model.backbone.arch = NARROW
    if cfg.default_scope == "mmdet":
        cfg.model.neck.in_channels = [16, 32, 64, 128]
        cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    else:
        cfg.model.decode_head.update(in_channels=[16, 32, 64, 128], channels=32)
        cfg.model.auxiliary_head.update(in_channels=64)
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = (320, 240)
    infer(cfg, None)


def released_detector(size: str) -> dict[str, Tensor]:
    """Names and shapes of the released file; tensor number i is full of i."""
    arch, dim = dict(s=("small", 96), b=("base", 128))[size]
    with torch.device("meta"):
        settings = dict(type="tokensparse.STViTSwin", arch=arch, out_indices=(0, 1, 2, 3))
        own = MODELS.build(settings).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, value in own.items():
        name = released_name(ours, SOURCES["stvit-r-det"].rules)
        kept = name.split(".")
        if ".2.blocks." in name and ".qkv." in name and int(kept[3]) % 6 in (3, 4):
            rows = value.shape[0] // 3
            shapes[name.replace(".qkv.", ".q.")] = (rows, *value.shape[1:])
            shapes[name.replace(".qkv.", ".kv.")] = (2 * rows, *value.shape[1:])
        else:
            shapes[name] = tuple(value.shape)
    shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
    shapes.update(head_shapes([dim * 2**i for i in range(4)]))
    return {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("size", ["s", "b"])
def test_released_shapes_are_those_of_our_config(size: str) -> None:
    """Neck and heads by the closed table = those that mmdet 3 builds from our config."""
    path = ROOT / f"configs/stvit/stvit-r-swin-{size}_cascade-mask-rcnn_ms-3x_coco.py"
    model = on_meta(Config.fromfile(path))
    built = {k: tuple(v.shape) for k, v in model.state_dict().items() if "backbone." not in k}
    dim = 96 if size == "s" else 128
    assert head_shapes([dim * 2**i for i in range(4)]) == built


def test_a_whole_released_detector_converts_and_loads_strictly(tmp_path: Path) -> None:
    theirs = released_detector("s")
    assert len(theirs) > 500
    for name in (
        "backbone.patch_embed.proj.0.c.weight",
        "backbone.layers.2.blocks.7.attn.kv.weight",
        "backbone.layers.2.blocks.9.attn.q.bias",
        "backbone.norm3.weight",
        "neck.fpn_convs.3.conv.bias",
        "rpn_head.rpn_reg.weight",
        "roi_head.bbox_head.2.shared_convs.3.bn.running_var",
        "roi_head.mask_head.1.upsample.weight",
    ):
        assert name in theirs
    weights, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save(dict(meta=dict(epoch=36, mmdet_version="2.11.0"), state_dict=theirs), weights)
    command = ["tools/convert_checkpoint.py", "stvit-r-det-full", str(weights), str(out)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rpn_head.rpn_cls.bias (3,) -> rpn_head.rpn_cls.bias" in done.stdout
    assert "-> backbone.plan.steps.1.reduce.layers.0.kv.weight" in done.stdout
    state = torch.load(out, weights_only=True)["state_dict"]
    path = ROOT / "configs/stvit/stvit-r-swin-s_cascade-mask-rcnn_ms-3x_coco.py"
    model = on_meta(Config.fromfile(path))
    model.load_state_dict(state, strict=True, assign=True)
    loaded = model.state_dict()
    for name, value in theirs.items():
        if not name.startswith("backbone."):
            assert (loaded[name] == value.flatten()[0]).all(), name
    step = loaded["backbone.plan.steps.1.reduce.layers.0.kv.weight"]
    assert step.unique().item() == theirs["backbone.layers.2.blocks.7.attn.kv.weight"].max()
    used = set().union(*(v.unique().tolist() for k, v in loaded.items() if "backbone." in k))
    assert used == {float(v.max()) for k, v in theirs.items() if k.startswith("backbone.")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(drop="rpn_head.rpn_conv.weight"), "missing: rpn_head.rpn_conv.weight"),
        (dict(add="roi_head.mask_head.3.x"), "not expected: roi_head.mask_head.3.x"),
        (dict(shape="neck.lateral_convs.0.conv.weight"), "misshapen: neck.lateral_convs.0"),
        (dict(drop="backbone.layers.0.blocks.0.norm1.weight"), "missing: backbone.layers.0.blocks"),
        (dict(drop="backbone.norm2.weight"), "backbone.norm2.weight"),
        (dict(only="rpn_head"), "a backbone alone is stvit-r-det"),
    ],
)
def test_another_detector_is_refused(change: dict[str, str], message: str) -> None:
    theirs = released_detector("s")
    if "drop" in change:
        del theirs[change["drop"]]
    if "add" in change:
        theirs[change["add"]] = torch.zeros(2)
    if "shape" in change:
        theirs[change["shape"]] = torch.zeros(256, 97, 1, 1)
    if "only" in change:
        theirs = {k: v for k, v in theirs.items() if k.startswith(change["only"])}
    with pytest.raises(CheckpointError, match=message):
        load_released("stvit-r-det-full", theirs)
