"""What a timm model's attributes say beyond its tensors; what ours cannot be is refused by name."""

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import ClassifierHead, Mlp, PatchEmbed
from timm.layers.activations import GELU
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from tokensparse.checkpoint.reading import State
from tokensparse.checkpoint.source import Settings
from tokensparse.checkpoint.timm import fold_scales, prefix_positions


class UnsupportedModelError(ValueError):
    """A timm model that ours cannot equal; the message names the attribute."""


def _need(fine: bool, attribute: str, found: object, wanted: str) -> None:
    if not fine:
        found = type(found).__name__ if isinstance(found, nn.Module) else repr(found)
        raise UnsupportedModelError(
            f"apply_plan: {attribute} = {found} is not supported; supported: {wanted}"
        )


def _common_eps(norms: Iterator[tuple[str, Any]]) -> float:
    eps: float | None = None
    for name, norm in norms:
        plain = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
        _need(plain, name, norm, "LayerNorm with weight and bias")
        assert isinstance(norm, nn.LayerNorm)
        _need(eps in (None, norm.eps), f"{name}.eps", norm.eps, f"one eps for all norms ({eps})")
        eps = norm.eps
    assert eps is not None
    return eps


def _check_mlp(name: str, mlp: Any) -> None:
    _need(type(mlp) is Mlp, name, mlp, "timm.layers.Mlp")
    _need(isinstance(mlp.norm, nn.Identity), f"{name}.norm", mlp.norm, "none")
    exact = isinstance(mlp.act, GELU) or (
        isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
    )
    _need(exact, f"{name}.act", mlp.act, "the exact GELU")


def _check_stem(model: Any) -> None:
    embed = model.patch_embed
    _need(type(embed) is PatchEmbed, "patch_embed", embed, "timm.layers.PatchEmbed")
    rows, cols = embed.patch_size
    _need(rows == cols, "patch_embed.patch_size", embed.patch_size, "square patches")
    whole = embed.img_size[0] % rows == 0 and embed.img_size[1] % cols == 0
    _need(whole, "patch_embed.img_size", embed.img_size, f"multiples of the patch size {rows}")


def describe_vit(model: Any) -> tuple[State, Settings]:
    """Tensors and settings of timm's VisionTransformer.

    Args:
        model: also timm's distilled DeiT.

    Returns:
        Released tensors (layer scales folded, absent biases zero, positions for every prefix
        token), and settings of our backbone that replace what is read off the tensors.

    Raises:
        UnsupportedModelError: naming the attribute.
    """
    known = (VisionTransformer, VisionTransformerDistilled)
    _need(type(model) in known, "type", model, "VisionTransformer, VisionTransformerDistilled")
    _check_stem(model)
    _need(
        isinstance(model.patch_embed.norm, nn.Identity),
        "patch_embed.norm",
        model.patch_embed.norm,
        "none",
    )
    _need(
        isinstance(model.norm_pre, nn.Identity), "norm_pre", model.norm_pre, "none (pre_norm=False)"
    )
    _need(model.attn_pool is None, "attn_pool", model.attn_pool, "none")
    _need(model.global_pool in ("token", "avg"), "global_pool", model.global_pool, "'token', 'avg'")
    _need(
        isinstance(model.fc_norm, nn.Identity),
        "fc_norm",
        model.fc_norm,
        "none (fc_norm=False: the norm comes before pooling)",
    )
    prefixed_mean = (
        model.global_pool == "avg" and model.pool_include_prefix and model.num_prefix_tokens
    )
    _need(not prefixed_mean, "pool_include_prefix", model.pool_include_prefix, "False")
    _need(isinstance(model.head, nn.Linear), "head", model.head, "a linear head (num_classes > 0)")
    for i, block in enumerate(model.blocks):
        _check_vit_block(f"blocks[{i}]", block)
    heads = model.blocks[0].attn.num_heads
    settings = dict(
        norm_eps=_common_eps(_vit_norms(model)),
        pool="token" if model.global_pool == "token" else "size_mean",
        img_size=tuple(model.patch_embed.img_size),
    )
    return _vit_state(model), {**settings, "num_heads": heads}


def _vit_norms(model: Any) -> Iterator[tuple[str, Any]]:
    yield "norm", model.norm
    for i, block in enumerate(model.blocks):
        yield f"blocks[{i}].norm1", block.norm1
        yield f"blocks[{i}].norm2", block.norm2


def _check_vit_block(name: str, block: Any) -> None:
    _need(type(block) is Block, name, block, "timm's plain Block")
    attn = block.attn
    _need(type(attn) is Attention, f"{name}.attn", attn, "timm's plain Attention")
    for part in ("q_norm", "k_norm", "norm"):
        module = getattr(attn, part)
        _need(isinstance(module, nn.Identity), f"{name}.attn.{part}", module, "none")
    _need(attn.gate is None, f"{name}.attn.gate", attn.gate, "none")
    square = attn.attn_dim == attn.qkv.in_features == attn.proj.out_features
    _need(square, f"{name}.attn.head_dim", attn.head_dim, "embed_dim / num_heads")
    _check_mlp(f"{name}.mlp", block.mlp)


def _vit_state(model: Any) -> State:
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Conv2d | nn.Linear)
            and module.bias is None
            and not name.endswith("qkv")
        ):
            state[f"{name}.bias"] = module.weight.new_zeros(module.weight.shape[0])
    if model.pos_embed is None:
        places = model.num_prefix_tokens + model.patch_embed.num_patches
        state["pos_embed"] = torch.zeros(
            1, places, model.embed_dim, device=model.norm.weight.device
        )
    elif model.no_embed_class:
        missing = model.num_prefix_tokens + model.patch_embed.num_patches - model.pos_embed.shape[1]
        state = prefix_positions(state, missing)
    return fold_scales(state)


def describe_swin(model: Any) -> tuple[State, Settings]:
    """Tensors and settings of timm's SwinTransformer; see :func:`describe_vit`."""
    _need(type(model) is SwinTransformer, "type", model, "SwinTransformer")
    _check_stem(model)
    head = model.head
    _need(type(head) is ClassifierHead, "head", head, "timm's ClassifierHead")
    pool = head.global_pool.pool_type
    _need(pool == "avg", "global_pool", pool, "'avg'")
    _need(isinstance(head.fc, nn.Linear), "head.fc", head.fc, "a linear head (num_classes > 0)")
    always = model.layers[0].blocks[0].always_partition
    _need(
        always or not model.dynamic_img_size,
        "dynamic_img_size",
        model.dynamic_img_size,
        "False, or always_partition=True: timm keeps the shifts of the size that it was built for; "
        "set_input_size() moves a model to another size",
    )
    window = model.layers[0].blocks[0].window_size
    for name, block in _swin_blocks(model):
        attn = block.attn
        square = attn.qkv.out_features == 3 * attn.qkv.in_features
        _need(square, f"{name}.attn.head_dim", attn.qkv.out_features, "dim / num_heads")
        _need(
            block.window_size == window and window[0] == window[1],
            f"{name}.window_size",
            block.window_size,
            f"one square window for all stages ({window[0]}): timm shrinks windows to small maps "
            "and scales them with the image; build it with a larger "
            "img_size, or with always_partition=True",
        )
        _need(block.always_partition == always, f"{name}.always_partition", not always, str(always))
        _check_mlp(f"{name}.mlp", block.mlp)
    eps = _common_eps(_swin_norms(model))
    _need(eps == 1e-5, "norm.eps", eps, "1e-5")
    settings = dict(
        img_size=tuple(model.patch_embed.img_size), window_shift="timm-always" if always else "timm"
    )
    return {name: value.detach() for name, value in model.state_dict().items()}, settings


def _swin_blocks(model: Any) -> Iterator[tuple[str, Any]]:
    for i, stage in enumerate(model.layers):
        for j, block in enumerate(stage.blocks):
            yield f"layers[{i}].blocks[{j}]", block


def _swin_norms(model: Any) -> Iterator[tuple[str, Any]]:
    yield "patch_embed.norm", model.patch_embed.norm
    yield "norm", model.norm
    for i, stage in enumerate(model.layers[1:], 1):
        yield f"layers[{i}].downsample.norm", stage.downsample.norm
    for name, block in _swin_blocks(model):
        yield f"{name}.norm1", block.norm1
        yield f"{name}.norm2", block.norm2
