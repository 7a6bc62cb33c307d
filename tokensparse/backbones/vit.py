"""The one ViT: DeiT-T/S/B and any size between, with any plan.

Shape letters: B batch, P prefix tokens (class, distillation, registers), N image tokens, C
channels, H W grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensparse.backbones.base import Backbone
from tokensparse.backbones.parts import (
    BlockOptions,
    Pool,
    Stage,
    as_image,
    build_blocks,
    drop_path_rates,
    freeze,
    image_size,
    init_weights,
    pool_tokens,
    sizes_of,
)
from tokensparse.blocks.stems import PatchStem, blank_padding, grid_of, valid_tokens
from tokensparse.ops.resize import resize_positions
from tokensparse.ops.windows import grid_centres
from tokensparse.plan import Flow, Plan, PlanConfig, StageSpec, close_all, run_stage
from tokensparse.registry import MODELS
from tokensparse.tokens import Tokens, Trace

ARCHS = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
}


@MODELS.register_module()
class VisionTransformer(Backbone):
    """Vision transformer (ViT, arXiv:2010.11929; DeiT, arXiv:2012.12877) that runs a token plan.

    Args:
        arch: ``tiny``, ``small``, ``base`` (DeiT's), or dict(embed_dim, depth, num_heads,
            mlp_ratio, qkv_bias).
        img_size: pixels, for which position embeddings and the plan are made; any size runs.
        patch_size: pixels of a patch's side.
        in_chans: channels of the image.
        class_token: add a class token.
        distilled: add a distillation token behind the class token.
        num_registers: register tokens (arXiv:2309.16588) behind those.
        pool: ``token`` (class token), ``mean``, ``size_mean``; ``auto``: ``token`` where there is
            one, else ``size_mean``.
        norm_eps: eps of the layer norms.
        position_antialias: filter position embeddings when they shrink (timm does, mmseg does not).
        plan: token reduction and recovery, see ``plan/syntax.py``.
        out_indices: blocks whose map is returned; None for classification.
        out_norms: a layer norm ``norm{i}`` on every returned map.
        drop_path_rate: stochastic depth, rising linearly over the blocks.
        attention: form of attention, see ``ops.attention.attend``.
        with_cp: recompute activations in the backward pass.
        frozen_stages: freeze the stem (0), or the first k blocks with their norms and steps (k);
            -1 freezes nothing.
        init_cfg: mmengine's.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "small",
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        class_token: bool = True,
        distilled: bool = False,
        num_registers: int = 0,
        pool: Pool | str = "auto",
        norm_eps: float = 1e-6,
        position_antialias: bool = True,
        plan: PlanConfig = None,
        out_indices: Sequence[int] | None = None,
        out_norms: bool = True,
        drop_path_rate: float = 0.0,
        attention: str = "auto",
        with_cp: bool = False,
        frozen_stages: int = -1,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        sizes = sizes_of(arch, ARCHS, ["embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"])
        dim, depth, heads = sizes["embed_dim"], sizes["depth"], sizes["num_heads"]
        if distilled and not class_token:
            raise ValueError(
                "distilled=True needs class_token=True: the distillation token stands behind it"
            )
        self.num_features = dim
        self.distilled = distilled
        self.pool = _pool(pool, class_token)
        self.out_indices = _out_indices(out_indices, depth)
        self.position_antialias = position_antialias
        self.with_cp = with_cp
        self.frozen_stages = frozen_stages
        self.stem = PatchStem(in_chans, dim, patch_size)
        self.grid = grid_of(image_size(img_size), patch_size)
        self._build_prefix(dim, class_token, distilled, num_registers)
        self.plan = Plan(
            plan,
            [StageSpec(dim, heads, depth)],
            self.grid,
            self.num_prefix_tokens,
            class_token,
            map_stages=(0,) if depth - 1 in (self.out_indices or ()) else (),
            mid_maps=self.out_indices is not None,
        )
        options = BlockOptions(
            heads,
            mlp_ratio=sizes.get("mlp_ratio", 4.0),
            qkv_bias=sizes.get("qkv_bias", True),
            norm_eps=norm_eps,
            attention=attention,
        )
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        self.stages = nn.ModuleList([Stage(None, build_blocks(self.plan, 0, options, rates))])
        self._build_norms(norm_eps, out_norms)
        init_weights(self.stages)
        self._freeze()

    def _build_prefix(
        self, dim: int, class_token: bool, distilled: bool, num_registers: int
    ) -> None:
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        self.reg_token = nn.Parameter(torch.zeros(1, num_registers, dim)) if num_registers else None
        self.num_prefix_tokens = int(class_token) + int(distilled) + num_registers
        places = self.num_prefix_tokens + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, places, dim))
        for table in (self.pos_embed, self.cls_token, self.dist_token, self.reg_token):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def _build_norms(self, norm_eps: float, out_norms: bool) -> None:
        if self.out_indices is None:
            self.norm = nn.LayerNorm(self.plan.out_dims[0], eps=norm_eps)
            self.num_features = self.plan.out_dims[0]
            return
        self.out_channels = tuple(self.plan.block(0, index).dim for index in self.out_indices)
        for index, dim in zip(self.out_indices, self.out_channels, strict=True):
            norm = nn.LayerNorm(dim, eps=norm_eps) if out_norms else nn.Identity()
            self.add_module(f"norm{index}", norm)

    def forward(
        self,
        img: Tensor,
        valid: Tensor | None = None,
        collect: frozenset[str] = frozenset(),
        with_trace: bool = False,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], Trace]:
        """Features.

        Args:
            img: (B, 3, h, w).
            valid: see :meth:`forward_tokens`.
            collect: see :meth:`forward_tokens`.
            with_trace: return (features, trace), as :meth:`forward_tokens` does.

        Returns:
            ((B, C),) pooled features, class and distillation token where ``distilled``; or, with
            ``out_indices``, the maps (B, C, H, W).
        """
        outs, trace = self.forward_tokens(img, valid, collect)
        return (outs, trace) if with_trace else outs

    def forward_tokens(
        self,
        img: Tensor,
        valid: Tensor | None = None,
        collect: frozenset[str] = frozenset(),
    ) -> tuple[tuple[Tensor, ...], Trace]:
        """Features and what happened to the tokens.

        Args:
            img: (B, 3, h, w).
            valid: (B, 2) rows and columns of each image that are no padding, or None.
            collect: ``maps``: token maps in the trace; ``attn``: attention of every block,
                ``attn:3``: of the blocks of stage 3; ``step_attn``: of reducers by attention.

        Returns:
            See :meth:`forward`, and the trace.
        """
        flow = self._embed(img, valid)._replace(collect=collect)
        maps: dict[int, Tensor] = {}

        def take(index: int, flow: Flow) -> None:
            if self.out_indices is not None and index in self.out_indices:
                last = index + 1 == self.plan.stages[0].depth
                if not last:
                    maps[index] = self._map(index, close_all(self.plan, flow, own=False))

        flow = run_stage(
            self.plan, 0, self.stages[0].blocks, flow, None, self.with_cp, after_block=take
        )
        if self.out_indices is None:
            return self._pooled(flow), flow.trace
        last = self.plan.stages[0].depth - 1
        if last in self.out_indices:
            maps[last] = self._map(last, flow)
        return tuple(maps[index] for index in self.out_indices), flow.trace

    def _embed(self, img: Tensor, valid: Tensor | None) -> Flow:
        grid = grid_of((img.shape[-2], img.shape[-1]), self.stem.stride)
        x = self.stem(blank_padding(img, valid))
        p = self.num_prefix_tokens
        table = self.pos_embed[:, p:]
        x = x + resize_positions(table, self.grid, grid, self.position_antialias)
        tokens = Tokens(
            x.new_empty(x.shape[0], 0, x.shape[2]),  # a view would keep x
            valid_tokens(valid, grid, self.stem.stride, x),
            grid_centres(grid, x.device).expand(x.shape[0], -1, -1),
            grid,
            padded=valid is not None,
        )
        prefix = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        if prefix:
            first = (torch.cat(prefix, 1) + self.pos_embed[:, :p]).expand(x.shape[0], -1, -1)
            x = torch.cat([first.to(x.dtype), x], 1)
        return Flow(x, tokens, p)

    def _map(self, index: int, flow: Flow) -> Tensor:
        norm = self.get_submodule(f"norm{index}")
        image = flow.image()
        return as_image(image._replace(x=norm(image.x)))

    def _pooled(self, flow: Flow) -> tuple[Tensor, ...]:
        if self.pool == "token":
            first = self.norm(flow.x[:, : 1 + int(self.distilled)])
            return tuple(first.unbind(1))
        image = flow.image()
        return (pool_tokens(image._replace(x=self.norm(image.x)), self.pool),)

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        tables = (self.pos_embed, self.cls_token, self.dist_token, self.reg_token)
        last = self.frozen_stages - 1
        blocks = (block for i, block in self.stages[0].blocks.items() if int(i) <= last)
        norms = (self.get_submodule(f"norm{i}") for i in self.out_indices or () if i <= last)
        freeze([self.stem, *tables, *blocks, *norms])
        for step in self.plan.steps:
            closed = step.last is not None and step.last <= last
            freeze([step.reduce if step.first <= last else None, step.recover if closed else None])

    def train(self, mode: bool = True) -> "VisionTransformer":
        """Frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze()
        return self


def _pool(pool: str, class_token: bool) -> Pool:
    if pool == "auto":
        return "token" if class_token else "size_mean"
    if pool not in ("token", "mean", "size_mean"):
        raise ValueError(f"pool={pool!r}; legal: 'auto', 'token', 'mean', 'size_mean'")
    if pool == "token" and not class_token:
        raise ValueError("pool='token' needs class_token=True; use pool='mean' or 'size_mean'")
    return pool  # type: ignore[return-value]


def _out_indices(out_indices: Sequence[int] | None, depth: int) -> tuple[int, ...] | None:
    if out_indices is None:
        return None
    wrong = [i for i in out_indices if not 0 <= i < depth]
    if wrong or len(set(out_indices)) != len(out_indices) or not out_indices:
        raise ValueError(
            f"out_indices={tuple(out_indices)}; expected different blocks of 0..{depth - 1}"
        )
    return tuple(out_indices)
