"""What every backbone shares: sizes, blocks of a stage, pooling, freezing."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tokensparse.blocks.attention import SetAttention, WindowAttention
from tokensparse.blocks.block import Block
from tokensparse.blocks.grid_attention import GridAttention
from tokensparse.blocks.transitions import zero_padding
from tokensparse.ops.attention import check_form
from tokensparse.plan import Plan, closest
from tokensparse.tokens import Tokens

Pool = Literal["token", "mean", "size_mean"]


class BlockOptions(NamedTuple):
    """Settings of the blocks of one stage.

    Attributes:
        num_heads: attention heads.
        window: side of attention windows.
        mlp_ratio: hidden channels of the feed-forward, as a multiple of the width.
        qkv_bias: bias on query, key and value.
        norm_eps: eps of the layer norms.
        final_act: a second GELU in the feed-forward (released SparseSwin).
        layer_scale: initial value of a learned scale on both branches of blocks that attend to a
            set or in windows of semantic tokens, or None.
        attention: form of attention, see ``ops.attention.attend``.
        semantic_bias: a learned position bias in blocks on semantic tokens that tile a grid.
    """

    num_heads: int
    window: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5
    final_act: bool = False
    layer_scale: float | None = None
    attention: str = "auto"
    semantic_bias: bool = False


def sizes_of(
    arch: str | Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], legal: Sequence[str]
) -> dict[str, Any]:
    """Sizes of a named architecture, or of a dict.

    Args:
        arch: a name in ``known``, or a dict of sizes.
        known: sizes by name.
        legal: keys that a dict may hold.

    Returns:
        The sizes.

    Raises:
        ValueError: an unknown name or key, naming the nearest right one, or a missing size.
    """
    if isinstance(arch, str):
        if arch not in known:
            raise ValueError(
                f"arch={arch!r} is unknown{closest(arch, known)}; known: {sorted(known)}, "
                "or a dict of sizes"
            )
        return dict(known[arch])
    for key in arch:
        if key not in legal:
            raise ValueError(
                f"arch: unknown size {key!r}{closest(key, legal)}; legal: {list(legal)}"
            )
    required = next(iter(known.values()))
    missing = [key for key in required if key not in arch]
    if missing:
        raise ValueError(f"arch: sizes {missing} are missing; a dict names {list(required)}")
    return dict(arch)


def image_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(rows, columns) in pixels."""
    if isinstance(img_size, int):
        return img_size, img_size
    rows, cols = img_size
    return rows, cols


def build_blocks(
    plan: Plan, stage: int, options: BlockOptions, drop_path: Sequence[float]
) -> nn.ModuleDict:
    """Blocks of one stage by index; blocks that a step replaces are left out."""
    check_form(options.attention)
    blocks = {}
    for index in range(plan.stages[stage].depth):
        spec = plan.block(stage, index)
        if spec.kind == "replaced":
            continue
        heads, bias, form = options.num_heads, options.qkv_bias, options.attention
        attn: SetAttention | WindowAttention
        if spec.kind == "window":
            attn = WindowAttention(spec.dim, heads, options.window, bias, form)
        elif spec.kind == "local":
            attn = WindowAttention(spec.dim, heads, spec.tile, bias, form, options.semantic_bias)
        elif options.semantic_bias and spec.grid is not None:
            attn = GridAttention(spec.dim, heads, spec.grid, bias, form)
        else:
            attn = SetAttention(spec.dim, heads, bias, form)
        blocks[str(index)] = Block(
            spec.dim,
            attn,
            options.mlp_ratio,
            drop_path[index],
            options.norm_eps,
            options.final_act,
            None if spec.kind == "window" else options.layer_scale,
        )
    return nn.ModuleDict(blocks)


class Stage(nn.Module):
    """A transition and blocks; the loop in ``plan.run`` runs them.

    Args:
        transition: from the stage before, or None.
        blocks: blocks by index.
    """

    def __init__(self, transition: nn.Module | None, blocks: nn.ModuleDict) -> None:
        super().__init__()
        self.transition = transition
        self.blocks = blocks


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth rates, rising linearly over all blocks from 0 to ``rate``.

    Raises:
        ValueError: ``rate`` is no share below 1.
    """
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate!r}; expected a share of blocks, from 0 to below 1")
    rates = torch.linspace(0.0, rate, sum(depths), device="cpu").tolist()
    return [[rates.pop(0) for _ in range(depth)] for depth in depths]


def pool_tokens(t: Tokens, pool: Pool) -> Tensor:
    """Mean of the image tokens: plain, or weighted by how many patches each stands for.

    Args:
        t: N tokens.
        pool: ``mean`` or ``size_mean``; tokens of size 0 never count.

    Returns:
        (B, C).
    """
    if pool == "size_mean":
        weight = t.size
    elif t.padded:
        weight = (t.size > 0).float()
    else:
        return t.x.mean(1)
    weight = (weight / weight.sum(1, keepdim=True).clamp(min=1e-6)).to(t.x.dtype)
    return (t.x * weight).sum(1)


def as_image(t: Tokens) -> Tensor:
    """Tokens that tile a grid -> (B, C, H, W), contiguous, zero where padding is."""
    assert t.grid is not None
    x = zero_padding(t.x, t.size) if t.padded else t.x
    return x.transpose(1, 2).unflatten(2, t.grid).contiguous()


def freeze(modules: Sequence[nn.Module | nn.Parameter | None]) -> None:
    """No gradients, and no dropping of paths, in these modules."""
    for module in modules:
        if isinstance(module, nn.Parameter):
            module.requires_grad = False
        elif module is not None:
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad = False


def init_weights(module: nn.Module) -> None:
    """Truncated normal of std 0.02 for linear layers, zero biases (DeiT and Swin)."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
