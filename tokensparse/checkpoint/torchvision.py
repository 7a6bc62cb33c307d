"""torchvision's names for ViT and Swin."""

from functools import partial

from tokensparse.checkpoint.names import Rule, prefixed
from tokensparse.checkpoint.reading import State
from tokensparse.checkpoint.source import Source, swin_settings, vit_settings
from tokensparse.checkpoint.timm import POSITIONS

_BLOCK = (
    ("norm1", "norm1"),
    ("attn.qkv", "attn.qkv"),
    ("attn.proj", "attn.proj"),
    ("norm2", "norm2"),
    ("mlp.0", "mlp.fc1"),
    ("mlp.3", "mlp.fc2"),
)

#: Children of torchvision's ``features``: stem, blocks, merging, blocks, ...
FEATURE_RULES = (
    Rule("0.0.{leaf}", "stem.proj.{leaf}"),
    Rule("0.2.{leaf}", "stem.norm.{leaf}"),
    *(
        Rule(f"{{2i+1}}.{{j}}.{theirs}.{{leaf}}", f"stages.{{i}}.blocks.{{j}}.{ours}.{{leaf}}")
        for theirs, ours in _BLOCK
    ),
    Rule(
        "{2i+1}.{j}.attn.relative_position_bias_table",
        "stages.{i}.blocks.{j}.attn.relative_position_bias_table",
    ),
    Rule("{2i}.norm.{leaf}", "stages.{i}.transition.norm.{leaf}"),
    Rule("{2i}.reduction.{leaf}", "stages.{i}.transition.reduction.{leaf}"),
)

SWIN_RULES = (
    *prefixed("features.", FEATURE_RULES),
    Rule("norm.{leaf}", "norm.{leaf}"),
    Rule("head.{leaf}", "head.fc.{leaf}"),
)

_LAYER = "encoder.layers.encoder_layer_{i}"
_OURS = "stages.0.blocks.{i}"

VIT_RULES = (
    Rule("class_token", "cls_token"),
    Rule("conv_proj.{leaf}", "stem.proj.{leaf}"),
    Rule("encoder.pos_embedding", "pos_embed"),
    Rule(f"{_LAYER}.ln_1.{{leaf}}", f"{_OURS}.norm1.{{leaf}}"),
    Rule(f"{_LAYER}.self_attention.in_proj_{{leaf}}", f"{_OURS}.attn.qkv.{{leaf}}"),
    Rule(f"{_LAYER}.self_attention.out_proj.{{leaf}}", f"{_OURS}.attn.proj.{{leaf}}"),
    Rule(f"{_LAYER}.ln_2.{{leaf}}", f"{_OURS}.norm2.{{leaf}}"),
    Rule(f"{_LAYER}.mlp.0.{{leaf}}", f"{_OURS}.mlp.fc1.{{leaf}}"),
    Rule(f"{_LAYER}.mlp.3.{{leaf}}", f"{_OURS}.mlp.fc2.{{leaf}}"),
    Rule("encoder.ln.{leaf}", "norm.{leaf}"),
    Rule("heads.head.{leaf}", "head.fc.{leaf}"),
)


def old_feed_forward(theirs: State) -> State:
    """Files of torchvision before 0.14 say ``mlp.linear_1`` and ``mlp.linear_2``."""
    return {
        name.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3."): value
        for name, value in theirs.items()
    }


SOURCES = {
    "torchvision-swin": Source(SWIN_RULES, swin_settings),
    "torchvision-vit": Source(
        VIT_RULES,
        partial(vit_settings, norm_eps=1e-6),
        old_feed_forward,
        keywords=("num_heads",),
        spatial=POSITIONS,
    ),
}
