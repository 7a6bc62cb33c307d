"""Names that the strict check of configs knows: registries by key, and keys beside constructors."""

from collections.abc import Callable
from typing import Any

from mmengine import registry as mm
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmengine.runner import Runner

from tokensparse.registry import RECOVERIES, REDUCERS

#: Which registry a key's dict is built from; others are looked up in those around it, then in all.
REGISTRY_OF: dict[str, Registry] = {
    "model": mm.MODELS,
    "data_preprocessor": mm.MODELS,
    "dataset": mm.DATASETS,
    "pipeline": mm.TRANSFORMS,
    "sampler": mm.DATA_SAMPLERS,
    "batch_sampler": mm.DATA_SAMPLERS,
    "collate_fn": mm.FUNCTIONS,
    "optim_wrapper": mm.OPTIM_WRAPPERS,
    "optimizer": mm.OPTIMIZERS,
    "param_scheduler": mm.PARAM_SCHEDULERS,
    "default_hooks": mm.HOOKS,
    "custom_hooks": mm.HOOKS,
    "val_evaluator": mm.METRICS,
    "test_evaluator": mm.METRICS,
    "visualizer": mm.VISUALIZERS,
    "vis_backends": mm.VISBACKENDS,
    "log_processor": mm.LOG_PROCESSORS,
    "init_cfg": mm.WEIGHT_INITIALIZERS,
    "train_cfg": mm.LOOPS,
    "val_cfg": mm.LOOPS,
    "test_cfg": mm.LOOPS,
    "reduce": REDUCERS,
    "every": REDUCERS,
    "recover": RECOVERIES,
    "restore": RECOVERIES,
}
ALL_REGISTRIES = tuple(
    {id(r): r for r in (*REGISTRY_OF.values(), mm.TASK_UTILS, mm.INFERENCERS)}.values()
)

#: Keys that mmengine takes off a dict before it calls the constructor.
TAKEN_OFF: dict[str, frozenset[str]] = {
    "optim_wrapper": frozenset({"constructor", "paramwise_cfg"}),
    "param_scheduler": frozenset({"convert_to_iter_based"}),
    "default_hooks": frozenset({"priority"}),
    "norm_cfg": frozenset({"requires_grad"}),
    "dcn": frozenset({"fallback_on_stride"}),
    "custom_hooks": frozenset({"priority"}),
}
#: Constructors that hand their ``**kwargs`` to a function.
FORWARDED: dict[Any, Callable[..., Any]] = {CheckpointHook: Runner.save_checkpoint}
ENV_KEYS = ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit", "dist_timeout")
TOP_LEVEL_EXTRA = frozenset(
    {"compile", "custom_imports", "find_unused_parameters", "model_wrapper_cfg", "sync_bn"}
)

#: Libraries whose configs leave their scope out.
MM_SCOPES = ("mmdet", "mmseg")
#: Variables that shipped configs of mmdet and mmseg keep at the top level for themselves.
FREE_VARIABLES = frozenset(
    {
        *("albu_train_transforms", "ann_file", "backbone_norm_cfg", "backend_args", "base_lr"),
        *("batch_augments", "checkpoint", "checkpoint_file", "class_name", "crop_size"),
        *("data_root", "dataset_type", "detector", "file_client_args", "image_size", "img_ratios"),
        *("img_scale", "input_size", "interval", "load_pipeline", "max_epochs", "max_iter"),
        *(
            "max_iters",
            "metainfo",
            "norm_cfg",
            "num_classes",
            "num_stages",
            "optimizer",
            "pretrained",
        ),
        *("test_pipeline", "train_pipeline", "tta_model", "tta_pipeline", "val_pipeline"),
        "vis_backends",
    }
)
