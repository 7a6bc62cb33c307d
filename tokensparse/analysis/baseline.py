"""The dense model that a reduced one is compared with: the same sizes, no plan."""

from collections.abc import Mapping
from typing import Any

#: Settings that ViT and Swin share with the presets over them.
_VIT = ("arch", "img_size", "patch_size", "in_chans", "class_token", "distilled", "num_registers")
_SWIN = ("arch", "img_size", "window_size", "patch_size", "in_chans", "out_indices", "out_norms")


def dense_of(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the dense baseline of a backbone.

    Args:
        backbone: settings of one of our backbones, with ``type``.

    Returns:
        Settings of ``VisionTransformer`` or ``SwinTransformer`` without a plan. SparseSwin's is the
        whole Swin of its trunk; STViT-DeiT's has no class token, as STViT-DeiT.

    Raises:
        ValueError: a backbone that is none of ours.
    """
    kind = str(backbone["type"]).removeprefix("tokensparse.")
    given = {key: value for key, value in backbone.items() if key != "type"}
    if kind in ("VisionTransformer", "STViTDeiT"):
        kept = {key: given[key] for key in _VIT if key in given}
        if kind == "STViTDeiT":
            kept = {"arch": "small", **kept, "class_token": False}
        if "out_indices" in given:
            kept["out_indices"] = given["out_indices"]
        return {"type": "tokensparse.VisionTransformer", **kept}
    if kind in ("SwinTransformer", "STViTSwin", "SparseSwin"):
        kept = {key: given[key] for key in _SWIN if key in given}
        if kind == "SparseSwin":
            kept["arch"] = given.get("trunk", "tiny")
        return {"type": "tokensparse.SwinTransformer", **kept}
    raise ValueError(
        f"backbone {backbone['type']!r} is none of tokensparse: it has no dense baseline"
    )
