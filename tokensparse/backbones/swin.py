"""The one Swin: T/S/B and any size between, any image size, with any plan.

Shape letters: B batch, N tokens, C channels, H W grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
from tokensparse.blocks.attention import WindowAttention
from tokensparse.blocks.stems import ConvStem, PatchStem, blank_padding, grid_of, valid_tokens
from tokensparse.blocks.transitions import (
    LinearTransition,
    PatchMerging,
    half_grid,
    halved,
    zero_padding,
)
from tokensparse.ops.windows import grid_centres
from tokensparse.plan import Flow, Plan, PlanConfig, StageSpec, Windows, run_stage, stage_windows
from tokensparse.registry import MODELS
from tokensparse.tokens import Tokens, Trace

ARCHS = {
    "tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}
SHIFTS = ("auto", "always", "official", "timm", "timm-always")
LEGAL_SIZES = ("embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias")


@MODELS.register_module()
class SwinTransformer(Backbone):
    """Swin transformer (arXiv:2103.14030) that runs a token plan.

    Args:
        arch: ``tiny``, ``small``, ``base``, or dict(embed_dim, depths, num_heads, mlp_ratio,
            qkv_bias).
        img_size: pixels, for which the plan is made and checked; any size runs.
        window_size: side of attention windows.
        window_padding: ``official``: the zeros that fill windows are attended, as in every released
            Swin; ``masked``: they never give nor get attention.
        window_shift: ``auto``: no shift along an axis that one window covers (torchvision);
            ``always``: mmdet's and mmseg's Swin; ``official``: no shift on either axis where one
            window covers the shorter side (Swin's authors, mmpretrain); ``timm``,
            ``timm-always``: the map is shifted before it is padded, as in timm.
        stem: ``patch``, or ``conv``: two strided convolutions (STViT), for which patch_size is 4.
        patch_size: pixels of a patch's side.
        in_chans: channels of the image.
        pool: ``mean`` or ``size_mean`` of the last tokens, for classification.
        plan: token reduction and recovery, see ``plan/syntax.py``.
        out_indices: stages whose map is returned; None for classification.
        out_norms: a layer norm ``norm{i}`` on every returned map.
        drop_path_rate: stochastic depth, rising linearly over all blocks.
        attention: form of attention, see ``ops.attention.attend``.
        with_cp: recompute activations in the backward pass.
        frozen_stages: freeze the stem (0), or the first k stages with their norms and the merging
            behind them (k), as mmdet's and mmseg's Swin does; -1 freezes nothing.
        init_cfg: mmengine's.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        img_size: int | Sequence[int] = 224,
        window_size: int = 7,
        window_padding: Literal["official", "masked"] = "official",
        window_shift: Literal["auto", "always", "official", "timm", "timm-always"] = "auto",
        stem: Literal["patch", "conv"] = "patch",
        patch_size: int = 4,
        in_chans: int = 3,
        pool: Pool = "size_mean",
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
        _check_choice("window_padding", window_padding, ("official", "masked"))
        _check_choice("window_shift", window_shift, SHIFTS)
        _check_choice("pool", pool, ("mean", "size_mean"))
        _check_choice("stem", stem, ("patch", "conv"))
        if stem == "conv" and patch_size != 4:
            raise ValueError(f"stem='conv' has stride 4, but patch_size={patch_size}; leave it out")
        specs, options = self._stages(arch, window_size, attention)
        self.window_size = window_size
        self.window_padding = window_padding
        self.window_shift = window_shift
        self.pool: Pool = pool
        self.with_cp = with_cp
        self.frozen_stages = frozen_stages
        self.out_indices = _out_indices(out_indices, len(specs))
        self.grid = grid_of(image_size(img_size), patch_size)
        self.stem: nn.Module
        if stem == "conv":
            self.stem = ConvStem(in_chans, specs[0].dim)
        else:
            self.stem = PatchStem(in_chans, specs[0].dim, patch_size, norm_eps=1e-5)
        self.stride = patch_size
        self.plan = Plan(plan, specs, self.grid, map_stages=self.out_indices or ())
        rates = drop_path_rates(drop_path_rate, [spec.depth for spec in specs])
        stages = []
        for index, spec in enumerate(specs):
            transition = _transition(spec, self.plan.out_dims[index - 1] if index else 0)
            blocks = build_blocks(self.plan, index, options[index], rates[index])
            stages.append(Stage(transition, blocks))
        self.stages = nn.ModuleList(stages)
        self.num_features = self.plan.out_dims[-1]
        self._prepared: dict[tuple[int, int], Windows] = {}
        self._build_norms(out_norms)
        init_weights(self.stages)
        self._freeze()

    def _stages(
        self, arch: str | Mapping[str, Any], window: int, attention: str
    ) -> tuple[list[StageSpec], list[BlockOptions]]:
        """What each stage is: widths double, maps halve."""
        sizes = sizes_of(arch, ARCHS, LEGAL_SIZES)
        depths, heads = tuple(sizes["depths"]), tuple(sizes["num_heads"])
        if len(depths) != len(heads):
            raise ValueError(f"arch: {len(depths)} depths, but {len(heads)} num_heads")
        specs, options = [], []
        for i, (depth, num_heads) in enumerate(zip(depths, heads, strict=True)):
            dim = sizes["embed_dim"] * 2**i
            specs.append(StageSpec(dim, num_heads, depth, True, "merge" if i else "none"))
            ratio, bias = sizes.get("mlp_ratio", 4.0), sizes.get("qkv_bias", True)
            options.append(BlockOptions(num_heads, window, ratio, bias, attention=attention))
        return specs, options

    def _build_norms(self, out_norms: bool) -> None:
        if self.out_indices is None:
            self.norm = nn.LayerNorm(self.num_features)
            return
        self.out_channels = tuple(self.plan.out_dims[index] for index in self.out_indices)
        for index in self.out_indices:
            dim = self.plan.out_dims[index]
            self.add_module(f"norm{index}", nn.LayerNorm(dim) if out_norms else nn.Identity())

    def forward(
        self,
        img: Tensor,
        valid: Tensor | None = None,
        collect: frozenset[str] = frozenset(),
        with_trace: bool = False,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], Trace]:
        """Features.

        Args:
            img: (B, 3, h, w), any size.
            valid: see :meth:`forward_tokens`.
            collect: see :meth:`forward_tokens`.
            with_trace: return (features, trace), as :meth:`forward_tokens` does.

        Returns:
            ((B, C),) pooled features; or, with ``out_indices``, the maps (B, Ci, Hi, Wi).
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
        maps = []
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            flow = self._enter(stage.transition, flow)
            grid, windows = flow.tokens.grid, None
            if grid is not None and self.plan.stages[index].windowed:
                windows = self._windows_of(grid, flow.x.device)
            flow = run_stage(self.plan, index, stage.blocks, flow, windows, self.with_cp)
            if self.out_indices is not None and index in self.out_indices:
                norm = self.get_submodule(f"norm{index}")
                maps.append(as_image(flow.tokens._replace(x=norm(flow.x))))
        if self.out_indices is not None:
            return tuple(maps), flow.trace
        image = flow.image()
        return (pool_tokens(image._replace(x=self.norm(image.x)), self.pool),), flow.trace

    def _embed(self, img: Tensor, valid: Tensor | None) -> Flow:
        grid = grid_of((img.shape[-2], img.shape[-1]), self.stride)
        x = self.stem(blank_padding(img, valid), valid)
        tokens = Tokens(
            x.new_empty(x.shape[0], 0, x.shape[2]),
            valid_tokens(valid, grid, self.stride, x),
            grid_centres(grid, x.device).expand(x.shape[0], -1, -1),
            grid,
            padded=valid is not None,
        )
        return Flow(x, tokens)

    def _enter(self, transition: nn.Module | None, flow: Flow) -> Flow:
        """Into the next stage; merged tokens start anew, one for each cell of the coarser grid."""
        if isinstance(transition, LinearTransition):
            return flow._replace(x=transition(flow.x), stack=())
        if not isinstance(transition, PatchMerging):
            return flow
        t, grid = flow.tokens, flow.tokens.grid
        assert grid is not None
        new = half_grid(grid)
        x = zero_padding(flow.x, t.size) if t.padded else flow.x
        x = transition(x, grid)
        size = halved(t.size, grid) if t.padded else t.size[:, :1].expand(-1, new[0] * new[1], -1)
        pos = grid_centres(new, x.device).expand(x.shape[0], -1, -1)
        return flow._replace(
            x=x,
            tokens=Tokens(x.new_empty(x.shape[0], 0, x.shape[2]), size, pos, new, padded=t.padded),
        )

    def _windows_of(self, grid: tuple[int, int], device: torch.device) -> Windows:
        """Geometry of a stage: prepared, or made now."""
        if self._prepared and not torch.is_grad_enabled() and grid in self._prepared:
            return self._prepared[grid]
        hide = self.window_padding == "masked"
        return stage_windows(grid, self.window_size, self.window_shift, hide, device)

    @torch.no_grad()
    def prepare(self, size: tuple[int, int]) -> None:
        """Compute masks and biases of windows for an image size ahead of inference; two are kept.

        Args:
            size: (rows, columns) in pixels.
        """
        grid = grid_of(size, self.stride)
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            if isinstance(stage.transition, PatchMerging):
                grid = half_grid(grid)
            if not self.plan.stages[index].windowed:
                continue
            windows = self._windows_of(grid, next(self.parameters()).device)
            self._prepared.pop(grid, None)
            while len(self._prepared) >= 2 * len(self.stages):
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[grid] = windows
            for name, block in stage.blocks.items():
                attn = getattr(block, "attn", None)
                if self.plan.block(index, int(name)).kind == "window" and isinstance(
                    attn, WindowAttention
                ):
                    layout, mask = windows.shifted if int(name) % 2 else windows.plain
                    attn.prepare(mask, layout)

    def _apply(self, *args: Any, **kwargs: Any) -> "SwinTransformer":
        self._prepared.clear()
        return super()._apply(*args, **kwargs)

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen: list[nn.Module | None] = [self.stem, *self.stages[: self.frozen_stages]]
        if 0 < self.frozen_stages < len(self.stages):
            following = self.stages[self.frozen_stages]
            assert isinstance(following, Stage)
            frozen.append(following.transition)
        frozen += [step for step in self.plan.steps if step.stage < self.frozen_stages]
        if self.out_indices is not None:
            names = [i for i in self.out_indices if i < self.frozen_stages]
            frozen += [self.get_submodule(f"norm{i}") for i in names]
        freeze(frozen)

    def train(self, mode: bool = True) -> "SwinTransformer":
        """Frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze()
        return self


def _transition(spec: StageSpec, dim: int) -> nn.Module | None:
    if spec.transition == "merge":
        return PatchMerging(dim, spec.dim)
    if spec.transition == "linear":
        return LinearTransition(dim, spec.dim)
    return None


def _check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    if value not in legal:
        raise ValueError(f"{name}={value!r}; legal: {list(legal)}")


def _out_indices(out_indices: Sequence[int] | None, stages: int) -> tuple[int, ...] | None:
    if out_indices is None:
        return None
    wrong = [i for i in out_indices if not 0 <= i < stages]
    if wrong or list(out_indices) != sorted(set(out_indices)) or not out_indices:
        raise ValueError(
            f"out_indices={tuple(out_indices)}; "
            f"expected rising, different stages of 0..{stages - 1}"
        )
    return tuple(out_indices)
