"""Misspelt keys stop a run before data open."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel

from tokensparse.config_check import ConfigError, check_config, merge_options
from tokensparse.config_check.check import no_files
from tokensparse.config_check.names import arguments, is_variable

ROOT = Path(__file__).parents[1]


TRACE = dict(type="ProfilerHook")


def config(**options) -> Config:
    cfg = Config.fromfile(ROOT / "configs/sparseswin_cls.py")
    cfg.merge_from_dict({k.replace("__", "."): v for k, v in options.items()})
    return cfg


@pytest.mark.parametrize(
    ("options", "key", "nearest"),
    [
        (dict(optim_wraper__optimizer__lr=1.0), "optim_wraper", "optim_wrapper"),
        (dict(model__bakbone=dict(type="SparseSwin")), "bakbone", "backbone"),
        (dict(model__backbone__drop_path_rat=0.1), "drop_path_rat", "drop_path_rate"),
        (dict(model__head__loss__label_smothing=0.1), "label_smothing", "label_smoothing"),
        (dict(model__head__num_clases=10), "num_clases", "num_classes"),
        (dict(model__data_preprocessor__mixup=dict(mixup_alfa=0.8)), "mixup_alfa", "mixup_alpha"),
        (dict(train_dataloader__bach_size=8), "bach_size", "batch_size"),
        (dict(train_dataloader__dataset__imgsize=8), "imgsize", "img_size"),
        (dict(train_dataloader__dataset__augment__hflp=0.5), "hflp", "hflip"),
        (dict(train_dataloader__sampler__shufle=True), "shufle", "shuffle"),
        (dict(optim_wrapper__optimizer__weigth_decay=0.1), "weigth_decay", "weight_decay"),
        (dict(optim_wrapper__precison="fp32"), "precison", "precision"),
        (dict(optim_wrapper__clip_grad__maxnorm=1.0), "maxnorm", "max_norm"),
        (
            dict(optim_wrapper__paramwise_cfg__norm_decaymult=0.0),
            "norm_decaymult",
            "norm_decay_mult",
        ),
        (dict(train_cfg__max_epoch=3), "max_epoch", "max_epochs"),
        (dict(val_evaluator__topks=(1,)), "topks", "topk"),
        (dict(default_hooks__checkpoint__intervall=3), "intervall", "interval"),
        (dict(randomness__sead=3), "sead", "seed"),
        (dict(env_cfg__cudnn_benchmrk=True), "cudnn_benchmrk", "cudnn_benchmark"),
        (dict(visualizer__vis_backend=[]), "vis_backend", "vis_backends"),
        (dict(log_processor=dict(custom_cfg=[dict(data_scr="loss")])), "data_scr", "data_src"),
        (dict(custom_hooks=[dict(type="ProfilerHook", schedule=dict(wayt=1))]), "wayt", "wait"),
        (
            dict(custom_hooks=[dict(TRACE, on_trace_ready=dict(type="log_trace", sortby=""))]),
            "sortby",
            "sort_by",
        ),
    ],
)
def test_misspelt_keys_are_named_with_the_nearest(options: dict, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*did you mean '{nearest}'"):
        check_config(config(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(model__backbone__type="tokensparse.SparseSwim"),
            "'tokensparse.SparseSwim'.*tokensparse.SparseSwin",
        ),
        (
            dict(train_dataloader__dataset__type="tokensparse.DigitDataset"),
            "tokensparse.DigitsDataset",
        ),
        (dict(optim_wrapper__optimizer__type="AdamWW"), "AdamW"),
        (
            dict(default_hooks__chekpoint__interval=3),
            "unknown key 'chekpoint' .did you mean 'checkpoint'",
        ),
        (
            dict(model__backbone__init_cfg=dict(type="tokensparse.ReleasedInit", kinds="x")),
            "kinds.*kind",
        ),
    ],
)
def test_unknown_types(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(config(**options))


VIT = dict(type="tokensparse.VisionTransformer", arch="tiny")
EVIT = dict(stage=0, span=(3, None), reduce=dict(type="EViT", keep=0.7))
GOOD_PLANS = [
    [EVIT],
    dict(every=dict(type="ToMe", r=13, inflection=0.0)),
    dict(every=dict(type="ToMe", r=[8] * 7), stages=(0,), restore=dict(type="KNNRestore")),
    dict(steps=[{**EVIT, "recover": dict(type="Scatter"), "span": (3, 5)}]),
    [dict(reduce=dict(type="Windowed", reducer=dict(type="ToMe", r=3)))],
]
BAD_PLANS = [
    ([{**EVIT, "spam": 3}], "spam.*span"),
    ([{**EVIT, "reduce": dict(type="EViT", kep=0.7)}], "kep.*keep"),
    ([{**EVIT, "reduce": dict(type="EVit")}], "EVit.*EViT"),
    ([{**EVIT, "recover": dict(type="Scater")}], "Scater.*Scatter"),
    (dict(every=dict(type="ToMe", r=13, inflexion=0.0)), "inflexion"),
    ([dict(reduce=dict(type="Windowed", reducer=dict(type="ToMe", inflction=1)))], "inflction"),
    (dict(evry=dict(type="ToMe")), "evry.*every"),
    (dict(steps=[{**EVIT, "shrnk": 2}]), "shrnk.*shrink"),
    (dict(every=dict(type="ToMe"), restore=dict(type="KNNRestor")), "KNNRestor.*KNNRestore"),
]


@pytest.mark.parametrize("plan", GOOD_PLANS)
def test_plans_pass(plan) -> None:
    check_config(config(model__backbone=dict(_delete_=True, **VIT, plan=plan)))


@pytest.mark.parametrize(("plan", "message"), BAD_PLANS)
def test_plans_are_checked_at_any_depth(plan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(config(model__backbone=dict(_delete_=True, **VIT, plan=plan)))


def test_a_strangers_module_is_imported_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange_reducer.py").write_text(
        "from tokensparse.registry import REDUCERS\n"
        "from tokensparse.reducers.topk import TopK\n"
        "@REDUCERS.register_module()\n"
        "class Strange(TopK):\n"
        "    def __init__(self, *args, salt=0, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    imports = dict(imports=["tokensparse", "strange_reducer"])
    for keys, fine in ((dict(keep=0.5, salt=1), True), (dict(keep=0.5, salte=1), False)):
        plan = [dict(reduce=dict(type="Strange", **keys))]
        cfg = config(custom_imports=imports, model__backbone=dict(_delete_=True, **VIT, plan=plan))
        if fine:
            check_config(cfg)
        else:
            with pytest.raises(ConfigError, match=r"salte.*salt"):
                check_config(cfg)


def test_arguments_follow_kwargs_to_parents() -> None:
    class Base:
        def __init__(self, a, b=1):
            pass

    class Middle(Base):
        pass

    class Child(Middle):
        def __init__(self, c, **kwargs):
            pass

    class Anything:
        def __init__(self, **kwargs):
            pass

    assert arguments(Child) == {"a", "b", "c"}
    assert arguments(Anything) is None
    assert arguments(lambda x, *, y: None) == {"x", "y"}


def test_configs_of_mmdet() -> None:
    """Their shipped configs pass with our backbone; a slip in them is named."""
    pytest.importorskip("mmdet")
    cfg = Config.fromfile(ROOT / "configs/quick/stvit-r-swin_cascade-mask-rcnn_digit-scenes.py")
    check_config(cfg)
    slips = [
        (("model", "rpn_head"), "anchor_generatr", "anchor_generator"),
        (("model", "roi_head", "bbox_roi_extractor", "roi_layer"), "output_sise", "output_size"),
        (("model", "test_cfg", "rpn", "nms"), "iou_treshold", "iou_threshold"),
        (("model", "backbone"), "img_sizes", "img_size"),
        (("train_dataloader", "dataset"), "spilt", "split"),
        ((), "train_dataloder", "train_dataloader"),
    ]
    for path, wrong, right in slips:
        broken = Config.fromfile(cfg.filename)
        place = broken
        for key in path:
            place = place[key]
        place[wrong] = 1
        with pytest.raises(ConfigError, match=rf"'{wrong}' \(did you mean '{right}'"):
            check_config(broken)
    cfg.model.type = "CascadeRCN"
    with pytest.raises(ConfigError, match="unknown type 'CascadeRCN'"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("speed = 3\nx = dict(lr=speed)", True),
        ("x = dict(lr=_base_.speed)", True),
        ("x = [*speed]\nspeed = 1", True),
        ("speed = 3\nx = dict(speed=3)  # speed", False),
        ("speed = 3\nx = dict(type='speed', a=b.speed)", False),
        ("speed = speedy == speeds", False),
    ],
)
def test_a_variable_is_a_name_that_the_config_uses(text: str, used: bool) -> None:
    assert is_variable("speed", text) is used


SHIPPED = {
    "mmdet": (
        "vfnet/vfnet_r50_fpn_1x_coco.py",  # arguments past the first of two parents
        "detr/detr_r50_8xb2-150e_coco.py",  # a key that the head takes off its loss
        "queryinst/queryinst_r50_fpn_1x_coco.py",
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",  # variables of the config's own
        "albu_example/mask-rcnn_r50_fpn_albu-1x_coco.py",  # transforms of another library
        "soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py",
        "cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py",  # types of the model's own
    ),
    "mmseg": (
        "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py",
        "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        "mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py",
    ),
}


@pytest.mark.parametrize(("house", "path"), [(h, p) for h in SHIPPED for p in SHIPPED[h]])
def test_what_the_houses_ship_passes(house: str, path: str) -> None:
    package = pytest.importorskip(house)
    check_config(Config.fromfile(Path(package.__file__).parent / ".mim/configs" / path))


def test_variables_of_mmdet_are_not_changed_in_vain() -> None:
    """Nobody reads a variable again once the files are read."""
    pytest.importorskip("mmdet")
    path = ROOT / "configs/quick/swin_cascade-mask-rcnn_digit-scenes.py"
    for name in ("max_epochs", "optimizer", "train_pipeline", "vis_backends"):
        cfg = Config.fromfile(path)
        cfg.merge_from_dict({name: 1})
        with pytest.raises(ConfigError, match=f"config: unknown key '{name}'"):
            check_config(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(train_cfg=3), "train_cfg: expected a dict, got 3"),
        (dict(model__backbone="swin"), "model.backbone: expected a dict, got 'swin'"),
        (dict(train_dataloader__dataset=3), "train_dataloader.dataset: expected a dict, got 3"),
        (dict(optim_wrapper=3), "optim_wrapper: expected a dict, got 3"),
        (dict(optim_wrapper__paramwise_cfg=3), "optim_wrapper.paramwise_cfg: expected a dict"),
        (
            dict(optim_wrapper__paramwise_cfg__custom_keys=["a"]),
            "optim_wrapper.paramwise_cfg.custom_keys: expected a dict, got ['a']",
        ),
        (
            dict(optim_wrapper__paramwise_cfg__custom_keys=dict(head=3)),
            "optim_wrapper.paramwise_cfg.custom_keys.head: expected a dict, got 3",
        ),
        (dict(custom_imports=3), "custom_imports: expected a dict, got 3"),
        (dict(default_scope="nosuch"), "default_scope: unknown scope 'nosuch'"),
        (
            dict(custom_imports=dict(imports=["no_such"])),
            "custom_imports: Failed to import",
        ),
        (dict(train_cfg__max_epochs=0), "train_cfg.max_epochs: expected a whole number from 1"),
        (dict(train_cfg__val_interval=0), "train_cfg.val_interval: expected a whole number from 1"),
        (dict(optim_wrapper__clip_grad=5), "optim_wrapper.clip_grad: expected a dict, got 5"),
        (dict(env_cfg=dict(dist_cfg=5)), "env_cfg.dist_cfg: expected a dict, got 5"),
        (dict(default_scope=3), "default_scope: expected text, got 3"),
        (dict(work_dir=3), "work_dir: expected text, got 3"),
        (dict(load_from=True), "load_from: expected text, got True"),
        (dict(resume="last.pth"), "resume: expected True or False, got 'last.pth'"),
        (dict(_extra_keys="abc"), "_extra_keys: expected a list of names, got 'abc'"),
        (dict(_extra_keys=5), "_extra_keys: expected a list of names, got 5"),
        (
            dict(log_processor=dict(custom_cfg=[dict(data_src="loss", method_name="men")])),
            "log_processor.custom_cfg[0].method_name: unknown method 'men' (did you mean 'mean'?)",
        ),
        (
            dict(custom_hooks=[dict(TRACE, on_trace_ready=dict(type="log_trac"))]),
            "on_trace_ready: unknown type 'log_trac' (did you mean 'log_trace'?)",
        ),
    ],
)
def test_values_of_another_kind_are_named(options: dict, message: str) -> None:
    """What only a dict, a text or a switch can stand for is no raw error later on."""
    cfg = config().to_dict()
    for path, value in options.items():
        *above, last = [path] if path.startswith("_") else path.split("__")
        place = cfg
        for name in above:
            place = place[name]
        place[last] = value
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(Config(cfg))


def test_options_that_nothing_reads_are_refused() -> None:
    cfg = config()
    with pytest.raises(ConfigError, match=r"--cfg-options _data.root: a free variable"):
        merge_options(cfg, {"_data.root": "x"})
    merge_options(cfg, {"_extra_keys": ["a"], "train_cfg.max_epochs": 3})
    assert cfg.train_cfg.max_epochs == 3


def test_a_check_reads_no_file(tmp_path: Path) -> None:
    """Parts of others that load weights while they are built load none in a check."""

    class Canary:
        def __reduce__(self) -> tuple:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",)

    torch.save(Canary(), tmp_path / "evil.pth")
    with pytest.raises(RuntimeError, match="no checkpoint is read"), no_files():
        torch.load(tmp_path / "evil.pth", weights_only=False)

    class Reads(BaseModel):
        def __init__(self, file: str) -> None:
            torch.load(file, weights_only=False)

        def forward(self) -> None:
            pass

    paramwise = dict(custom_keys={"stem.conv": dict(lr_mult=0.1)})
    model = dict(type=Reads, file=str(tmp_path / "evil.pth"))
    check_config(Config(dict(model=model, optim_wrapper=dict(paramwise_cfg=paramwise))))
    assert not (tmp_path / "ran").exists()


def test_a_variable_of_the_users_own_file_is_used(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    path = tmp_path / "own.py"
    base = ROOT / "configs/quick/swin_cascade-mask-rcnn_digit-scenes.py"
    for text, named in (
        ("batch_size = 2", "batch_size"),
        ("optimizer = dict(type='SGD', lr=1.0)", "optimizer"),
        ("batch_size = 2\ntrain_dataloader = dict(batch_size=batch_size)", None),
    ):
        path.write_text(f"_base_ = {str(base)!r}\n{text}\n")
        if named is None:
            check_config(Config.fromfile(path))
            continue
        with pytest.raises(ConfigError, match=f"unknown key '{named}'"):
            check_config(Config.fromfile(path))


def test_a_profiler_that_prints_is_legal() -> None:
    trace = dict(type="log_trace", sort_by="self_cpu_time_total", row_limit=5)
    check_config(config(custom_hooks=[dict(TRACE, schedule=dict(wait=1), on_trace_ready=trace)]))
