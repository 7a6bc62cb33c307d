"""SparseSwin: Swin's first three stages, then a SparTa block. A preset over the one Swin."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokensparse.backbones.parts import BlockOptions, sizes_of
from tokensparse.backbones.swin import ARCHS as TRUNKS
from tokensparse.backbones.swin import LEGAL_SIZES, SwinTransformer
from tokensparse.plan import StageSpec
from tokensparse.registry import MODELS

ARCHS = {
    "tiny": dict(num_tokens=49, token_dim=512),
    "small": dict(num_tokens=64, token_dim=768),
    "base": dict(num_tokens=81, token_dim=1024),
}


@MODELS.register_module()
class SparseSwin(SwinTransformer):
    """SparseSwin (arXiv:2309.05224, Sec. 3): stage 4 is a token converter and plain blocks.

    With ``out_indices`` it is the released dense encoder: a fixed position code in the converter,
    and for stage 3 (index 3) a layer norm and the token-to-spatial MLP, at half the size of stage
    2's map; other maps come without a norm.

    Args:
        arch: ``tiny`` (49 tokens of 512), ``small`` (64 of 768), ``base`` (81 of 1024), or
            dict(num_tokens, token_dim) and, optionally, num_heads (16), depth (2; 4 with
            ``out_indices``), qkv_bias (True; False with ``out_indices``).
        trunk: Swin of stages 1-3: ``tiny``, ``small``, ``base``, or dict(embed_dim, depths,
            num_heads).
        img_size: pixels of the learned spatial map; any size runs, its map is resized.
        out_indices: stages whose map is returned; None for classification.
        window_size: side of attention windows.
        window_padding: see :class:`SwinTransformer`.
        window_shift: see :class:`SwinTransformer`.
        in_chans: channels of the image.
        allow_expansion: allow more tokens than arrive in stage 3.
        drop_path_rate: stochastic depth, rising linearly over all blocks.
        attention: form of attention, see ``ops.attention.attend``.
        with_cp: recompute activations in the backward pass.
        frozen_stages: freeze the stem (0) and the first k stages (k); -1 freezes nothing.
        init_cfg: mmengine's.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        trunk: str | Mapping[str, Any] = "tiny",
        img_size: int | Sequence[int] = 224,
        out_indices: Sequence[int] | None = None,
        window_size: int = 7,
        window_padding: str = "official",
        window_shift: str = "auto",
        in_chans: int = 3,
        allow_expansion: bool = False,
        drop_path_rate: float = 0.0,
        attention: str = "auto",
        with_cp: bool = False,
        frozen_stages: int = -1,
        init_cfg: Any = None,
    ) -> None:
        dense = out_indices is not None
        legal = ["num_tokens", "token_dim", "num_heads", "depth", "qkv_bias"]
        self.sparta = dict(num_heads=16, depth=4 if dense else 2, qkv_bias=not dense)
        self.sparta.update(sizes_of(arch, ARCHS, legal))
        step: dict[str, Any] = dict(
            stage=3,
            span=(0, None),
            reduce=dict(
                type="SparTa",
                num_tokens=self.sparta["num_tokens"],
                out_dim=self.sparta["token_dim"],
                position_code=dense,
            ),
            allow_expansion=allow_expansion,
        )
        if dense:
            step["shrink"] = 2
            step["recover"] = dict(
                type="LinearRestore", hidden=4 * self.sparta["token_dim"], pre_norm=True
            )
        super().__init__(
            arch=trunk,
            img_size=img_size,
            window_size=window_size,
            window_padding=window_padding,  # type: ignore[arg-type]
            window_shift=window_shift,  # type: ignore[arg-type]
            in_chans=in_chans,
            pool="mean",
            plan=[step],
            out_indices=out_indices,
            out_norms=False,
            drop_path_rate=drop_path_rate,
            attention=attention,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            init_cfg=init_cfg,
        )

    def _stages(
        self, arch: str | Mapping[str, Any], window: int, attention: str
    ) -> tuple[list[StageSpec], list[BlockOptions]]:
        """Three stages of Swin; the fourth keeps the map's size and attends as a set."""
        sizes = sizes_of(arch, TRUNKS, LEGAL_SIZES)
        three = {
            key: value[:3] if key in ("depths", "num_heads") else value
            for key, value in sizes.items()
        }
        specs, options = super()._stages(three, window, attention)
        heads, depth = self.sparta["num_heads"], self.sparta["depth"]
        specs.append(StageSpec(specs[-1].dim, heads, depth, False, "none"))
        options.append(
            BlockOptions(
                heads, qkv_bias=self.sparta["qkv_bias"], final_act=True, attention=attention
            )
        )
        return specs, options
