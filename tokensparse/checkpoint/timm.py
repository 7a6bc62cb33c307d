"""timm's names; DeiT's authors use them, and, but for patch merging, Swin's authors do."""

import math
from functools import partial

import torch
from torch import Tensor

from tokensparse.checkpoint.names import Rule
from tokensparse.checkpoint.reading import State
from tokensparse.checkpoint.source import (
    Grid,
    Settings,
    Source,
    Spatial,
    swin_settings,
    vit_settings,
)
from tokensparse.ops.resize import resize_positions

_BLOCK = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

VIT_RULES = (
    Rule("cls_token", "cls_token"),
    Rule("dist_token", "dist_token"),
    Rule("reg_token", "reg_token"),
    Rule("pos_embed", "pos_embed"),
    Rule("patch_embed.proj.{leaf}", "stem.proj.{leaf}"),
    *(Rule(f"blocks.{{i}}.{p}.{{leaf}}", f"stages.0.blocks.{{i}}.{p}.{{leaf}}") for p in _BLOCK),
    Rule("norm.{leaf}", "norm.{leaf}"),
    Rule("head.{leaf}", "head.fc.{leaf}"),
    Rule("head_dist.{leaf}", "head.fc_dist.{leaf}"),
)

_SWIN_RULES = (
    Rule("patch_embed.{leaf}.weight", "stem.{leaf}.weight"),
    Rule("patch_embed.{leaf}.bias", "stem.{leaf}.bias"),
    *(
        Rule(f"layers.{{i}}.blocks.{{j}}.{p}.{{leaf}}", f"stages.{{i}}.blocks.{{j}}.{p}.{{leaf}}")
        for p in _BLOCK
    ),
    Rule(
        "layers.{i}.blocks.{j}.attn.relative_position_bias_table",
        "stages.{i}.blocks.{j}.attn.relative_position_bias_table",
    ),
    Rule("norm.{leaf}", "norm.{leaf}"),
)

TIMM_SWIN_RULES = (
    *_SWIN_RULES,
    Rule("layers.{i}.downsample.norm.{leaf}", "stages.{i}.transition.norm.{leaf}"),
    Rule("layers.{i}.downsample.reduction.{leaf}", "stages.{i}.transition.reduction.{leaf}"),
    Rule("head.fc.{leaf}", "head.fc.{leaf}"),
)

OFFICIAL_SWIN_RULES = (
    *_SWIN_RULES,
    Rule("layers.{i}.downsample.norm.{leaf}", "stages.{i+1}.transition.norm.{leaf}"),
    Rule("layers.{i}.downsample.reduction.{leaf}", "stages.{i+1}.transition.reduction.{leaf}"),
    Rule("head.{leaf}", "head.fc.{leaf}"),
)


def fold_scales(theirs: State) -> State:
    """Layer scale multiplied into the layer before it: the same function.

    timm says ``ls1.gamma``, DeiT III (arXiv:2204.07118) ``gamma_1``.
    """
    state = dict(theirs)
    for name, gamma in theirs.items():
        for scale, layer in (("1", "attn.proj"), ("2", "mlp.fc2")):
            for ending in (f".ls{scale}.gamma", f".gamma_{scale}"):
                if not name.endswith(ending):
                    continue
                weight, bias = (
                    f"{name.removesuffix(ending)}.{layer}.{k}" for k in ("weight", "bias")
                )
                if weight not in state or bias not in state:
                    continue
                if gamma.shape == state[bias].shape == state[weight].shape[:1]:
                    del state[name]
                    state[weight] = gamma[:, None] * state[weight]
                    state[bias] = gamma * state[bias]
    return state


def prefix_positions(state: State, prefix: int) -> State:
    """Zero positions for prefix tokens, where they have none (``no_embed_class``).

    Args:
        state: released tensors, with ``pos_embed`` (1, N, C).
        prefix: P.

    Returns:
        The same, with ``pos_embed`` (1, P + N, C).
    """
    table = state["pos_embed"]
    return {**state, "pos_embed": torch.cat([table.new_zeros(1, prefix, table.shape[2]), table], 1)}


def prepare_vit(theirs: State) -> State:
    """Fold layer scales; prefix tokens get zero positions where the table is a map without them."""
    state = fold_scales(theirs)
    names = ("cls_token", "dist_token", "reg_token")
    tokens = [state[k].shape[1] for k in names if k in state and state[k].ndim == 3]
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or not tokens:
        return state
    with_prefix, without = (_is_square(table.shape[1] - n) for n in (sum(tokens), 0))
    return prefix_positions(state, sum(tokens)) if without and not with_prefix else state


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def resize_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Position embeddings (1, P + H W, C) of another grid; the prefix stays."""
    prefix = table.shape[1] - old[0] * old[1]
    return torch.cat([table[:, :prefix], resize_positions(table[:, prefix:], old, new)], 1)


def patch_stride(settings: Settings) -> int:
    """Pixels of a patch."""
    return int(settings["patch_size"])


POSITIONS = (Spatial("pos_embed", patch_stride, resize_table),)

SOURCES = {
    "timm-vit": Source(
        VIT_RULES,
        partial(vit_settings, norm_eps=1e-6),
        prepare_vit,
        keywords=("num_heads",),
        spatial=POSITIONS,
    ),
    "timm-swin": Source(TIMM_SWIN_RULES, partial(swin_settings, window_shift="timm")),
    "official-swin": Source(OFFICIAL_SWIN_RULES, partial(swin_settings, window_shift="official")),
}
