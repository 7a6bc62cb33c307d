"""Names of the released SparseSwin (arXiv:2309.05224): classifier and dense encoder."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from tokensparse.checkpoint.names import Rule, prefixed
from tokensparse.checkpoint.reading import CheckpointError, State
from tokensparse.checkpoint.source import (
    Grid,
    Settings,
    Source,
    Spatial,
    count,
    given_size,
    has_qkv_bias,
    patch_weight,
    swin_trunk,
    width,
)
from tokensparse.checkpoint.torchvision import FEATURE_RULES
from tokensparse.ops.resize import resize_mixing, resize_positions

_MIXING = "plan.steps.0.reduce.spatial.weight"
_LAST = "plan.steps.0.recover.fc2"

_SPARTA_RULES = (
    Rule("step4.convert_token.convert.{leaf}", "plan.steps.0.reduce.conv.{leaf}"),
    Rule("step4.convert_token.lin_t.{leaf}", "plan.steps.0.reduce.spatial.{leaf}"),
    *(
        Rule(f"step4.{theirs}.{{leaf}}", f"stages.3.blocks.{{j}}.{ours}.{{leaf}}")
        for theirs, ours in (
            ("norm1.{j}", "norm1"),
            ("mha.{j}.qkv", "attn.qkv"),
            ("mha.{j}.lin", "attn.proj"),
            ("norm2.{j}", "norm2"),
            ("mlp.{j}.fc1", "mlp.fc1"),
            ("mlp.{j}.fc2", "mlp.fc2"),
        )
    ),
)

# SparTa's rules come first: the trunk's would name stage 4 in a way that no file does.
CLASSIFIER_RULES = (
    *_SPARTA_RULES,
    *prefixed("swin_model.", FEATURE_RULES),
    Rule("norm.{leaf}", "norm.{leaf}"),
    Rule("fc_out.{leaf}", "head.fc.{leaf}"),
)


def _in_blocks(rule: Rule) -> Rule:
    """Children of ``features`` lie in ``block1`` (stem, first stage), ``block2``, ``block3``."""
    return rule._replace(
        theirs=("block1." if "{i}" not in rule.ours else "block{i+1}.") + rule.theirs
    )


DENSE_RULES = (
    *_SPARTA_RULES,
    *(_in_blocks(rule) for rule in FEATURE_RULES),
    Rule("norm.{leaf}", "plan.steps.0.recover.norm.{leaf}"),
    Rule("token2spatial.mlp.fc1.{leaf}", "plan.steps.0.recover.fc1.{leaf}"),
    Rule("token2spatial.mlp.fc2.{leaf}", f"{_LAST}.{{leaf}}"),
)


def sparse_swin_settings(
    state: State, keywords: Mapping[str, Any], dense: bool = False
) -> Settings:
    """Settings of ``SparseSwin`` from tensors in our names.

    Args:
        state: tensors by our names.
        keywords: ``sparta_heads`` (default 16) and ``img_size`` where given.
        dense: settings of the dense encoder.

    Returns:
        Settings, with ``type``.
    """
    trunk, window = swin_trunk(state, 3)
    mixing = state[_MIXING]
    dim, heads = width(state, 3), keywords.get("sparta_heads", 16)
    if heads < 1 or dim % heads:
        raise CheckpointError(
            f"sparta_heads={heads} does not divide the {dim} channels in the file; it cannot be "
            "read off the tensors: say sparta_heads=..."
        )
    arch = dict(
        num_tokens=mixing.shape[0],
        token_dim=dim,
        num_heads=heads,
        depth=count(state, "stages.3.blocks.{}."),
        qkv_bias=has_qkv_bias(state, [3]),
    )
    settings = dict(
        type="tokensparse.SparseSwin",
        arch=arch,
        trunk=trunk,
        img_size=given_size(keywords, 16, mixing.shape[1], "the spatial layer"),
        window_size=window,
        in_chans=patch_weight(state).shape[1],
    )
    return {**settings, "out_indices": (0, 1, 2, 3)} if dense else settings


def resize_rows(x: Tensor, old: Grid, new: Grid) -> Tensor:
    """The output side of a linear layer over positions: (H W,) or (H W, K) of another grid."""
    rows = x.view(1, x.shape[0], -1)
    resized = resize_positions(rows, old, new)[0]
    return resized[:, 0] if x.ndim == 1 else resized


def _stride(settings: Settings, stride: int = 16) -> int:
    return stride


_SPARTA_MAP = Spatial(_MIXING, partial(_stride, stride=16), resize_mixing)
_LAST_MAP = tuple(
    Spatial(f"{_LAST}.{leaf}", partial(_stride, stride=32), resize_rows)
    for leaf in ("weight", "bias")
)

SOURCES = {
    "sparseswin": Source(
        CLASSIFIER_RULES,
        sparse_swin_settings,
        keywords=("sparta_heads",),
        own_plan=True,
        spatial=(_SPARTA_MAP,),
    ),
    "sparseswin-det": Source(
        DENSE_RULES,
        partial(sparse_swin_settings, dense=True),
        keywords=("sparta_heads",),
        dense=True,
        own_plan=True,
        spatial=(_SPARTA_MAP, *_LAST_MAP),
    ),
}
