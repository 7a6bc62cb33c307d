"""Names of the released STViT-R (arXiv:2303.08685): Swin classifier and detection backbone."""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from tokensparse.checkpoint.names import Rule
from tokensparse.checkpoint.reading import CheckpointError, State
from tokensparse.checkpoint.source import Settings, Source, count, has_qkv_bias, mlp_ratio, width

_CROSS = (
    ("norm1.{leaf}", "norm1.{leaf}"),
    ("attn.q.{leaf}", "q.{leaf}"),
    ("attn.kv.{leaf}", "kv.{leaf}"),
    ("attn.proj.{leaf}", "proj.{leaf}"),
    ("layer_scale_1", "ls1.gamma"),
    ("layer_scale_2", "ls2.gamma"),
    ("norm2.{leaf}", "norm2.{leaf}"),
    ("mlp.fc1.{leaf}", "mlp.fc1.{leaf}"),
    ("mlp.fc2.{leaf}", "mlp.fc2.{leaf}"),
)
_SELF = (
    ("norm1.{leaf}", "norm1.{leaf}"),
    ("attn.qkv.{leaf}", "attn.qkv.{leaf}"),
    ("attn.proj.{leaf}", "attn.proj.{leaf}"),
    ("layer_scale_1", "ls1.gamma"),
    ("layer_scale_2", "ls2.gamma"),
    ("norm2.{leaf}", "norm2.{leaf}"),
    ("mlp.fc1.{leaf}", "mlp.fc1.{leaf}"),
    ("mlp.fc2.{leaf}", "mlp.fc2.{leaf}"),
)
_TABLE = ("attn.relative_position_bias_table", "attn.relative_position_bias_table")
#: Layers 1, 2 and 5 of a unit: STGM's two, and the recovery.
_PLACES = (
    ("{6i+1}", "plan.steps.{i}.reduce.layers.0."),
    ("{6i+2}", "plan.steps.{i}.reduce.layers.1."),
    ("{6i+5}", "plan.steps.{i}.recover.block."),
)

TRUNK_RULES = (
    Rule("patch_embed.proj.0.c.weight", "stem.conv1.weight"),
    Rule("patch_embed.proj.0.bn.{leaf}", "stem.bn1.{leaf}"),
    Rule("patch_embed.proj.2.c.weight", "stem.conv2.weight"),
    Rule("patch_embed.proj.2.bn.{leaf}", "stem.bn2.{leaf}"),
    *(
        Rule(f"layers.2.blocks.{number}.{theirs}", ours_before + ours)
        for number, ours_before in _PLACES
        for theirs, ours in _CROSS
    ),
    *(
        Rule(f"layers.2.blocks.{number}.{theirs}", f"stages.2.blocks.{number}.{ours}")
        for number in ("{6i}", "{6i+3}", "{6i+4}")
        for theirs, ours in (*_SELF, _TABLE)
    ),
    Rule("layers.2.semantic_token2", "plan.steps.0.reduce.centres"),
    *(
        Rule(f"layers.{{i}}.blocks.{{j}}.{theirs}", f"stages.{{i}}.blocks.{{j}}.{ours}")
        for theirs, ours in (*_SELF, _TABLE)
    ),
    Rule("layers.{i}.downsample.norm.{leaf}", "stages.{i+1}.transition.norm.{leaf}"),
    Rule("layers.{i}.downsample.reduction.weight", "stages.{i+1}.transition.reduction.weight"),
)
CLASSIFIER_RULES = (
    *TRUNK_RULES,
    Rule("norm.{leaf}", "norm.{leaf}"),
    Rule("head.{leaf}", "head.fc.{leaf}"),
)
DENSE_RULES = (*TRUNK_RULES, Rule("norm{i}.{leaf}", "norm{i}.{leaf}"))


#: Layers that the released code keeps apart.
_PARTNER = {"q": "kv", "kv": "q"}
_PAIRED = re.compile(
    r"(?P<start>layers\.2\.blocks\.(?P<block>\d{1,4})\.attn)\.(?P<part>q|kv)\.(?P<leaf>\w+)"
)


def join_queries(theirs: State) -> State:
    """Query and key-value layers of blocks that attend to themselves become one layer.

    Raises:
        CheckpointError: one of a pair is missing, or the two do not fit together.
    """
    joined = dict(theirs)
    for name, query in theirs.items():
        found = _PAIRED.fullmatch(name)
        if found is None or int(found["block"]) % 6 not in (3, 4):
            continue
        start, leaf = found["start"], found["leaf"]
        partner = f"{start}.{_PARTNER[found['part']]}.{leaf}"
        if partner not in theirs:
            raise CheckpointError(f"not what the name says. missing: {partner}")
        if found["part"] == "kv":
            continue
        keys = theirs[partner]
        if not 0 < query.ndim == keys.ndim or query.shape[1:] != keys.shape[1:]:
            raise CheckpointError(
                f"not what the name says. misshapen: {name} is {tuple(query.shape)}, {partner} is "
                f"{tuple(keys.shape)}; they belong together"
            )
        del joined[name], joined[partner]
        joined[f"{start}.qkv.{leaf}"] = torch.cat([query, keys])
    return joined


def stvit_r_settings(state: State, keywords: Mapping[str, Any], spec: str) -> Settings:
    """Settings of ``STViTSwin`` from tensors in our names.

    Args:
        state: tensors by our names.
        keywords: ``num_heads`` of the four stages where given; it must be what the bias tables say.
        spec: ``released-cls`` or ``released-det``.

    Returns:
        Settings, with ``type``.
    """
    units = count(state, "plan.steps.{}.")
    depths = [count(state, f"stages.{i}.blocks.{{}}.") for i in range(4)]
    depths[2] = 6 * units
    tables = [state[f"stages.{i}.blocks.0.{_TABLE[1]}"] for i in range(4)]
    heads = tuple(table.shape[1] for table in tables)
    if keywords.get("num_heads") not in (None, heads, list(heads)):
        raise CheckpointError(f"num_heads={keywords['num_heads']}, but the bias tables say {heads}")
    window = (int(tables[0].shape[0] ** 0.5) + 1) // 2
    arch = dict(
        embed_dim=width(state, 0),
        depths=tuple(depths),
        num_heads=heads,
        mlp_ratio=mlp_ratio(state, "stages.0.blocks.0"),
        qkv_bias=has_qkv_bias(state, range(4)),
    )
    settings: Settings = dict(
        type="tokensparse.STViTSwin",
        arch=arch,
        spec=spec,
        window_size=window,
        img_size=window * 32,
        in_chans=state["stem.conv1.weight"].shape[1],
    )
    centres = state.get("plan.steps.0.reduce.centres")
    if centres is not None:
        settings.update(use_global=True, num_tokens=centres.shape[1] // 4)
    local = state.get(f"stages.2.blocks.3.{_TABLE[1]}")
    if local is not None:
        side = (math.isqrt(local.shape[0]) + 1) // 2
        settings.update(relative_pos=True, num_tokens=side**2)
    return settings if spec == "released-cls" else {**settings, "out_indices": (0, 1, 2, 3)}


SOURCES = {
    "stvit-r-cls": Source(
        CLASSIFIER_RULES,
        partial(stvit_r_settings, spec="released-cls"),
        prepare=join_queries,
        keywords=("num_heads",),
        own_plan=True,
    ),
    "stvit-r-det": Source(
        DENSE_RULES,
        partial(stvit_r_settings, spec="released-det"),
        prepare=join_queries,
        keywords=("num_heads",),
        dense=True,
        own_plan=True,
    ),
}
