"""Names of mmpretrain, mmdet and mmseg.

Their Swin merges patches with ``nn.Unfold``: channel c of place (row, column) stands at 4 c + 2 row
+ column, not in blocks of channels; norm and reduction are permuted.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokensparse.checkpoint.names import Rule, prefixed
from tokensparse.checkpoint.reading import State
from tokensparse.checkpoint.source import (
    Settings,
    Source,
    keep_prefix,
    last_number,
    swin_settings,
    vit_settings,
)
from tokensparse.checkpoint.timm import POSITIONS


def blocks_of_channels(x: Tensor) -> Tensor:
    """(..., 4 C) in the order of ``nn.Unfold`` -> (..., 4 C) in blocks.

    The blocks are places (0,0), (1,0), (0,1), (1,1) of (row, column). A misshapen tensor stays as
    it is, and is found out by its shape.
    """
    if x.ndim == 0 or x.shape[-1] % 4:
        return x
    blocks: Tensor = x.unflatten(-1, (-1, 2, 2)).transpose(-1, -3)
    return blocks.flatten(-3)


_STAGE = "stages.{i}.blocks.{j}"

SWIN_RULES = (
    Rule("patch_embed.projection.{leaf}", "stem.proj.{leaf}"),
    Rule("patch_embed.norm.{leaf}", "stem.norm.{leaf}"),
    *(
        Rule(f"{_STAGE}.{theirs}.{{leaf}}", f"{_STAGE}.{ours}.{{leaf}}")
        for theirs, ours in (
            ("norm1", "norm1"),
            ("attn.w_msa.qkv", "attn.qkv"),
            ("attn.w_msa.proj", "attn.proj"),
            ("norm2", "norm2"),
            ("ffn.layers.0.0", "mlp.fc1"),
            ("ffn.layers.1", "mlp.fc2"),
        )
    ),
    Rule(
        f"{_STAGE}.attn.w_msa.relative_position_bias_table",
        f"{_STAGE}.attn.relative_position_bias_table",
    ),
    Rule(
        "stages.{i}.downsample.norm.{leaf}",
        "stages.{i+1}.transition.norm.{leaf}",
        blocks_of_channels,
    ),
    Rule(
        "stages.{i}.downsample.reduction.{leaf}",
        "stages.{i+1}.transition.reduction.{leaf}",
        blocks_of_channels,
    ),
)

DENSE_SWIN_RULES = (*SWIN_RULES, Rule("norm{i}.{leaf}", "norm{i}.{leaf}"))

PRETRAIN_SWIN_RULES = (
    *prefixed("backbone.", (*SWIN_RULES, Rule("norm3.{leaf}", "norm.{leaf}"))),
    Rule("head.fc.{leaf}", "head.fc.{leaf}"),
)


def _vit_rules(qkv: str, proj: str) -> tuple[Rule, ...]:
    parts = (
        ("ln1.", "norm1"),
        (qkv, "attn.qkv"),
        (proj, "attn.proj"),
        ("ln2.", "norm2"),
        ("ffn.layers.0.0.", "mlp.fc1"),
        ("ffn.layers.1.", "mlp.fc2"),
    )
    return (
        Rule("cls_token", "cls_token"),
        Rule("dist_token", "dist_token"),
        Rule("pos_embed", "pos_embed"),
        Rule("patch_embed.projection.{leaf}", "stem.proj.{leaf}"),
        *(
            Rule(f"layers.{{i}}.{theirs}{{leaf}}", f"stages.0.blocks.{{i}}.{ours}.{{leaf}}")
            for theirs, ours in parts
        ),
    )


PRETRAIN_VIT_RULES = (
    *prefixed(
        "backbone.", (*_vit_rules("attn.qkv.", "attn.proj."), Rule("ln1.{leaf}", "norm.{leaf}"))
    ),
    Rule("head.layers.head.{leaf}", "head.fc.{leaf}"),
    Rule("head.layers.head_dist.{leaf}", "head.fc_dist.{leaf}"),
)

SEG_VIT_RULES = (
    *_vit_rules("attn.attn.in_proj_", "attn.attn.out_proj."),
    Rule("ln{i}.{leaf}", "norm{i}.{leaf}"),
)


def backbone_only(theirs: State) -> State:
    """The backbone of a whole detector or segmentor, or a backbone as it is."""
    return keep_prefix(theirs, "backbone.")


def last_norm(theirs: State) -> State:
    """The norm of the last stage is ``norm``, ``norm1``, ``norm2`` ...: all become ``norm3``."""
    last = last_number(theirs, r"backbone\.stages\.(\d+)\.")
    renamed = {}
    for name, value in theirs.items():
        for old in ("backbone.norm.", f"backbone.norm{last}."):
            if name.startswith(old):
                name = "backbone.norm3." + name.removeprefix(old)
                break
        renamed[name] = value
    return renamed


def old_final_norm(theirs: State) -> State:
    """Before mmpretrain 1.0 layer norms were called ``norm1`` and ``norm2``, too."""
    return {
        name.replace(".norm1.", ".ln1.").replace(".norm2.", ".ln2."): value
        for name, value in theirs.items()
    }


def prepare_seg_vit(theirs: State) -> State:
    """The backbone, with a bias of the patch convolution, and its final norm under a block's name.

    mmseg builds the convolution without bias by default; the final norm belongs to the last block.
    """
    state = dict(backbone_only(theirs))
    weight = state.get("patch_embed.projection.weight")
    if weight is not None and weight.ndim:
        state.setdefault("patch_embed.projection.bias", torch.zeros(weight.shape[0]))
    last = last_number(state, r"layers\.(\d+)\.")
    for leaf in ("weight", "bias"):
        if f"ln1.{leaf}" in state:
            state[f"ln{last}.{leaf}"] = state.pop(f"ln1.{leaf}")
    return state


def seg_vit_settings(state: State, keywords: Mapping[str, Any]) -> Settings:
    """The map of the last block, as mmseg's default, with a norm where the file holds one."""
    settings = vit_settings(state, keywords, norm_eps=1e-6, position_antialias=False)
    last = settings["arch"]["depth"] - 1
    normed = any(name.startswith(f"norm{last}.") for name in state)
    return {**settings, "out_indices": (last,), "out_norms": normed}


_DENSE_SWIN = Source(
    DENSE_SWIN_RULES, partial(swin_settings, window_shift="always"), backbone_only, dense=True
)

SOURCES = {
    "mmpretrain-swin": Source(
        PRETRAIN_SWIN_RULES, partial(swin_settings, window_shift="official"), last_norm
    ),
    "mmpretrain-vit": Source(
        PRETRAIN_VIT_RULES,
        partial(vit_settings, norm_eps=1e-6),
        old_final_norm,
        keywords=("num_heads",),
        spatial=POSITIONS,
    ),
    "mmdet-swin": _DENSE_SWIN,
    "mmseg-swin": _DENSE_SWIN,
    "mmseg-vit": Source(
        SEG_VIT_RULES,
        seg_vit_settings,
        prepare_seg_vit,
        keywords=("num_heads",),
        dense=True,
        spatial=POSITIONS,
        plain_maps=True,
    ),
}
