"""Names that the strict check of configs knows: registries by key, and keys beside constructors.

Most legal keys are read off constructors; what no constructor names stands here.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from mmengine import registry as mm
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import DefaultScope, Registry
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
    "evaluator": mm.METRICS,
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
_OTHERS = (mm.TASK_UTILS, mm.INFERENCERS, mm.EVALUATOR, mm.MODEL_WRAPPERS)
ALL_REGISTRIES = tuple({id(r): r for r in (*REGISTRY_OF.values(), *_OTHERS)}.values())

#: Keys whose dicts are nothing without a ``type``.
TYPED = frozenset(
    {
        *("model", "data_preprocessor", "dataset", "pipeline", "sampler", "batch_sampler"),
        *("collate_fn", "optimizer", "param_scheduler", "visualizer", "vis_backends"),
        *("backbone", "neck", "decode_head", "auxiliary_head", "head", "rpn_head", "roi_head"),
        *("bbox_head", "mask_head", "loss", "assigner", "anchor_generator", "bbox_coder"),
        *("norm_cfg", "act_cfg", "reduce", "recover", "restore", "roi_layer"),
    }
)

#: Keys whose values are dicts or lists of dicts, or built objects: no number and no text.
DICTS = frozenset(
    {
        *(set(REGISTRY_OF) - {"pipeline", "evaluator", "collate_fn"}),
        *(
            "backbone",
            "neck",
            "head",
            "decode_head",
            "rpn_head",
            "roi_head",
            "bbox_head",
            "mask_head",
        ),
        *("train_dataloader", "val_dataloader", "test_dataloader", "env_cfg", "randomness"),
        *("model_wrapper_cfg", "auto_scale_lr", "custom_imports", "paramwise_cfg", "custom_keys"),
        *("dist_cfg", "mp_cfg", "clip_grad"),
    }
)
#: Top-level keys whose values are text, or yes or no.
TEXT = ("work_dir", "load_from", "launcher", "default_scope", "experiment_name")
SWITCHES = ("resume", "sync_bn", "find_unused_parameters", "replace_head")

#: Keys under which ``type`` is a word of the model that reads it, or a name in another library.
OWN_TYPES = frozenset(
    {
        *("adapt_cfg", "same_up_trans", "same_down_trans", "across_lateral_trans"),
        *("across_down_trans", "across_up_trans", "across_skip_trans", "bbox_params"),
        *("output_trans", "inter_trans", "dqs_cfg"),
    }
)
#: Transforms whose own ``transforms`` another library builds.
FOREIGN_TRANSFORMS = frozenset({"Albu", "mmdet.Albu", "mmseg.Albu"})

#: Keys that mmengine takes off a dict before it calls the constructor.
TAKEN_OFF: dict[str, frozenset[str]] = {
    "optim_wrapper": frozenset({"constructor", "paramwise_cfg"}),
    "param_scheduler": frozenset({"convert_to_iter_based"}),
    "default_hooks": frozenset({"priority"}),
    "norm_cfg": frozenset({"requires_grad"}),
    "dcn": frozenset({"fallback_on_stride", "deformable_groups"}),
    "init_cfg": frozenset({"override"}),
    "loss_cls": frozenset({"bg_cls_weight"}),
    "decode_head": frozenset({"in_index"}),
    "upsample_cfg": frozenset({"scale_factor"}),
    "custom_hooks": frozenset({"priority"}),
}
#: Constructors that hand their ``**kwargs`` to a function.
FORWARDED: dict[Any, Callable[..., Any]] = {CheckpointHook: Runner.save_checkpoint}

#: What dicts without a constructor may hold, by the key under which they stand.
UNTYPED: dict[str, tuple[str, ...]] = {
    "env_cfg": ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit", "dist_timeout"),
    "mp_cfg": ("mp_start_method", "opencv_num_threads"),
    "dist_cfg": ("backend", "timeout", "init_backend", "port", "init_method"),
    "auto_scale_lr": ("base_batch_size", "enable"),
    "custom_imports": ("imports", "allow_failed_imports"),
    "compile": ("backend", "mode", "options", "dynamic", "fullgraph", "disable"),
    "arch": (
        *("embed_dim", "depth", "depths", "num_heads", "mlp_ratio", "qkv_bias"),
        *("num_tokens", "token_dim"),
    ),
    "trunk": ("embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias"),
    "data_prefix": (
        *("img", "img_path", "img_path2", "seg", "seg_map_path", "sub_data_root"),
        *("depth_map_path", "ann", "anno", "gt_path"),
    ),
    "filter_cfg": ("filter_empty_gt", "min_size", "bbox_min_size"),
    "metainfo": ("classes", "palette", "dataset_type", "task_name", "thing_classes"),
}
#: Hooks that mmengine, mmdet, mmseg and our runner know by name; others belong to ``custom_hooks``.
DEFAULT_HOOKS = (
    *("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"),
    *("visualization", "resume", "finite", "signals", "bad_images"),
)
#: What models of mmdet and mmseg look up in their ``train_cfg`` and ``test_cfg``, at any depth.
MODEL_CFG = frozenset(
    {
        *("rpn", "rpn_proposal", "rcnn", "assigner", "sampler", "allowed_border", "pos_weight"),
        *("debug", "nms_pre", "nms_post", "max_per_img", "max_per_image", "nms", "min_bbox_size"),
        *("mask_size", "score_thr", "mask_thr_binary", "mask_thr", "topk", "top_k", "corner_topk"),
        *("local_maximum_kernel", "distance_threshold", "reg_assigner", "pos_radius"),
        *("max_num_grid", "ga_assigner", "ga_sampler", "center_ratio", "ignore_ratio"),
        *("score_voting", "num_points", "oversample_ratio", "importance_sample_ratio"),
        *("panoptic_on", "semantic_on", "instance_on", "iou_thr", "filter_low_score"),
        *("object_mask_thr", "panoptic", "mask_overlap", "stuff_area_limit", "smoothl1_beta"),
        *("neg_pos_ratio", "isr", "k", "bias", "carl", "subdivision_steps", "scale_factor"),
        *("subdivision_num_points", "init", "refine", "filter_thr", "kernel", "sigma"),
        *("initial_epoch", "initial_assigner", "alpha", "beta", "perm_range", "conf_thr", "mode"),
        *("crop_size", "stride", "size_divisor", "yolox", "multi_label", "with_nms"),
        *("chunked_size",),
    }
)
#: Keys of ``paramwise_cfg`` by its constructor; None: mmengine's own.
_MULTIPLIERS = (
    *("bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult"),
    *("dcn_offset_lr_mult", "flat_decay_mult", "custom_keys", "bypass_duplicate"),
)
_BY_LAYER = ("num_layers", "decay_rate", "layer_decay_rate", "decay_type")
PARAMWISE: dict[Any, tuple[str, ...]] = {
    None: _MULTIPLIERS,
    "DefaultOptimWrapperConstructor": _MULTIPLIERS,
    "LearningRateDecayOptimizerConstructor": _BY_LAYER,
    "LayerDecayOptimizerConstructor": _BY_LAYER,
    "ForceDefaultOptimWrapperConstructor": (*_MULTIPLIERS, "force_default_settings"),
    "tokensparse.LayerDecay": (*_MULTIPLIERS, "layer_decay"),
}
#: Parts of parameter names that ``custom_keys`` may name in any model, whether it has them or not.
PARAMETERS = frozenset(
    {
        *("pos_embed", "absolute_pos_embed", "relative_position_bias_table", "cls_token"),
        *("dist_token", "reg_token", "norm", "bias", "backbone", "neck", "head"),
    }
)
TOP_LEVEL_EXTRA = frozenset(
    {
        *("compile", "custom_imports", "find_unused_parameters", "model_wrapper_cfg"),
        *("replace_head", "sync_bn"),
    }
)

#: Variables that ``--tta`` reads.
READ_BY_TOOLS = frozenset({"tta_model", "tta_pipeline"})
#: Libraries whose configs leave their scope out.
MM_SCOPES = ("mmdet", "mmseg")
#: Variables that shipped configs of mmdet and mmseg keep at the top level for themselves.
FREE_VARIABLES = frozenset(
    {
        *("albu_train_transforms", "ann_file", "backbone_norm_cfg", "backend", "backend_args"),
        *("base_lr", "batch_augments", "batch_size", "backbone_embed_multi", "branch_field"),
        *("backbone_norm_multi", "checkpoint", "checkpoint_file", "class_name", "class_weight"),
        *("color_space", "conv_cfg", "conv_kernel_size", "crop_size", "cudnn_benchmark"),
        *("custom_keys", "data", "data_preprocessor", "data_root", "dataset_aug", "dataset_train"),
        *("dataset_type", "dataset_version", "depths", "detector", "dynamic_intervals"),
        *("embed_multi", "file_client_args", "fp16", "geometric", "gpu_ids", "ham_norm_cfg"),
        *("head_norm_cfg", "image_size", "img_norm_cfg", "img_prefix", "img_ratios", "img_scale"),
        *("img_scales", "input_size", "interval", "iters", "labeled_dataset", "lang_model_name"),
        *("load_pipeline", "max_epoch", "max_epochs", "max_iter", "max_iters", "metainfo"),
        *("norm_cfg", "norm_multi", "num_classes", "num_frames", "num_last_epochs", "num_levels"),
        *("num_proposals", "num_stages", "num_stuff_classes", "num_things_classes", "scale"),
        *("num_workers", "optimizer", "optimizer_config", "pretrained", "rpn_weight", "runner"),
        *("specific_key_path", "stable_diffusion_cfg", "stage2_num_epochs", "strong_pipeline"),
        *("sup_pipeline", "teacher_ckpt", "test_pipeline", "total_iters", "train_ann", "val_ann"),
        *("train_dataset", "train_pipeline", "train_pipeline_stage2", "tta_model"),
        *("tta_pipeline", "unlabeled_dataset", "unsup_pipeline", "used_labels", "val_pipeline"),
        *("vis_backends", "weak_pipeline", "weights"),
    }
)


def arguments(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names of the keyword arguments of a function or constructor; None where any name is taken.

    A constructor's ``**kwargs`` are followed to its parents, in the order of inheritance.
    """
    names, is_open = known_arguments(function)
    return None if is_open else names


@lru_cache
def known_arguments(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of the keyword arguments, and whether ``**kwargs`` takes more in the end."""
    if not inspect.isclass(function):
        return _named(function)
    if function in FORWARDED:
        names, _ = _named(vars(function)["__init__"])
        more, is_open = known_arguments(FORWARDED[function])
        return names | more, is_open
    found: frozenset[str] = frozenset()
    is_open = False
    parents = 1
    for cls in function.__mro__:
        if cls in (object, torch.nn.Module):
            break
        parents = max(parents, len(cls.__bases__))
        if "__init__" in vars(cls):
            names, is_open = _named(vars(cls)["__init__"])
            found |= names
            if is_open and _takes_names_of_the_user(vars(cls)["__init__"]):
                return frozenset(), True
            if not is_open and parents == 1:  # of several parents any may be called
                break
    return found, is_open


def _takes_names_of_the_user(function: Callable[..., Any]) -> bool:
    """``**branches`` are names of the user's own, ``**kwargs`` those of somebody's arguments."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind == p.VAR_KEYWORD and not re.search("arg|cfg", p.name) for p in parameters)


def _named(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Argument names without self, and whether ``**kwargs`` takes more."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(names - {"self"}), any(p.kind == p.VAR_KEYWORD for p in parameters)


def is_variable(name: str, text: str) -> bool:
    """Whether a config's text uses a name that it sets: ``dict(pipeline=name)``, ``_base_.name``.

    What only stands left of an ``=`` is a setting, and nobody may read it.
    """
    code = re.sub(r"#.*", "", text)
    used = rf"(?:(?<![\w.'\"])|\b_base_\.){re.escape(name)}\b(?![\w'\"]|\s*=(?!=))"
    return re.search(used, code) is not None


def own_variables(cfg: Config) -> set[str]:
    """Top-level names that a config's files keep for themselves and that nobody has changed since.

    A change after the files were read (``--cfg-options``) reaches nobody.
    """
    own, text = Config.fromfile(cfg.filename), cfg.text
    known = {k for k in own if k in FREE_VARIABLES or is_variable(k, text)}
    if ".mim" not in Path(cfg.filename).parts:  # a file of the user's own uses what it sets
        written = Path(cfg.filename).read_text()
        set_here = {k for k in known if re.search(rf"^{re.escape(k)}\s*=", written, re.MULTILINE)}
        known -= {k for k in set_here - READ_BY_TOOLS if not is_variable(k, written)}
    return {k for k in known if k in cfg and own[k] == cfg[k]}


def named_types(target: Callable[..., Any], value: Mapping[str, Any]) -> list[str]:
    """Types that arguments such as ``resize_type`` of an open constructor name."""
    given = {
        name: value.get(name, parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
    }
    return [v for k, v in given.items() if k.endswith("_type") and isinstance(v, str)]


def names_in(registry: Registry) -> set[str]:
    """Names in a registry, and those of its children with their scope."""
    names = set(registry.module_dict)
    for scope, child in registry.children.items():
        names |= {f"{scope}.{name}" for name in child.module_dict}
    return names


#: Settings of a model that name a file of weights.
WEIGHTS = ("init_cfg", "pretrained", "teacher_ckpt")


def without_weights(value: Any) -> Any:
    """Settings of a model that is built without reading files."""
    if isinstance(value, Mapping):
        return {k: without_weights(v) for k, v in value.items() if k not in WEIGHTS}
    return [without_weights(v) for v in value] if isinstance(value, list) else value


def found_in(kind: str, registries: Iterable[Registry]) -> tuple[Any, Registry] | None:
    """What the first registry that knows a name has there."""
    for registry in registries:
        child = registry.children.get(scope_now())  # mmdet's, in a config of mmdet
        found = (None if child is None else child.get(kind)) or registry.get(kind)
        if found is not None:
            return found, registry
    return None


def scope_now() -> str:
    """Scope of the config at hand."""
    current = DefaultScope.get_current_instance()
    return "" if current is None else str(current.scope_name)
