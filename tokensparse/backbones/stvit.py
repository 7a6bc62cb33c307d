"""STViT and STViT-R (arXiv:2303.08685): presets over the one ViT, the one Swin and a plan."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokensparse.backbones.parts import BlockOptions, drop_path_rates, sizes_of
from tokensparse.backbones.swin import ARCHS, LEGAL_SIZES, SwinTransformer
from tokensparse.backbones.vit import ARCHS as VIT_ARCHS
from tokensparse.backbones.vit import VisionTransformer
from tokensparse.plan import StageSpec
from tokensparse.registry import MODELS

Layer = Literal["dense", "stgm", "local", "global", "recover"]
Spec = Literal["paper", "released-cls", "released-det"]

#: One dumbbell unit of six layers (Sec. 3.4).
UNIT: tuple[Layer, ...] = ("dense", "stgm", "stgm", "local", "global", "recover")


@MODELS.register_module()
class STViTDeiT(VisionTransformer):
    """STViT-DeiT (Sec. 3.3): base layers, STGM, layers on semantic tokens, average pooling.

    Args:
        arch: ``tiny``, ``small``, ``base``, or dict(embed_dim, depth, num_heads, mlp_ratio,
            qkv_bias).
        num_tokens: semantic tokens Ns, a square: 16, 36, 64, 100.
        base_layers: layers before STGM.
        stgm_layers: layers that STGM stands for.
        stgm: further settings of STGM.
        img_size: pixels; any size runs.
        patch_size: pixels of a patch's side.
        in_chans: channels of the image.
        out_indices: refused: STViT is for classification; give ``VisionTransformer`` a plan that
            recovers.
        drop_path_rate: stochastic depth, rising linearly over the blocks.
        attention: form of attention, see ``ops.attention.attend``.
        with_cp: recompute activations in the backward pass.
        frozen_stages: freeze the stem (0) and the first k blocks (k); -1 freezes nothing.
        init_cfg: mmengine's.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "small",
        num_tokens: int = 16,
        base_layers: int = 4,
        stgm_layers: int = 2,
        stgm: Mapping[str, Any] | None = None,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        attention: str = "auto",
        with_cp: bool = False,
        frozen_stages: int = -1,
        init_cfg: Any = None,
    ) -> None:
        _refuse_maps(
            out_indices, "STViTDeiT", "give VisionTransformer a plan with STGM and a recovery"
        )
        legal = ["embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"]
        sizes = sizes_of(arch, VIT_ARCHS, legal)
        depth = sizes["depth"]
        last = base_layers + stgm_layers
        if base_layers < 0 or last > depth:
            raise ValueError(
                f"base_layers={base_layers} and stgm_layers={stgm_layers} need {last} layers, "
                f"but depth={depth}"
            )
        rates = drop_path_rates(drop_path_rate, [depth])[0][base_layers:last]
        reduce = dict(
            type="STGM",
            num_tokens=num_tokens,
            num_layers=stgm_layers,
            mlp_ratio=sizes.get("mlp_ratio", 4.0),
            qkv_bias=sizes.get("qkv_bias", True),
            drop_path=tuple(rates),
            attention=attention,
        )
        reduce.update(stgm or {})
        step = dict(
            span=(base_layers, None), reduce=reduce, replaces=tuple(range(base_layers, last))
        )
        super().__init__(
            arch=sizes,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            class_token=False,
            pool="mean",
            plan=[step],
            drop_path_rate=drop_path_rate,
            attention=attention,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            init_cfg=init_cfg,
        )


@MODELS.register_module()
class STViTSwin(SwinTransformer):
    """STViT-Swin (Sec. 3.3), and STViT-R-Swin with dumbbell units in stage 3 (Sec. 3.4).

    Without ``out_indices`` it is STViT (``spec="paper"``): stage 3 goes over to semantic tokens,
    stage 4 keeps them. With ``out_indices``, or with a released ``spec``, it is STViT-R: every unit
    ends in a recovery.

    Args:
        arch: ``tiny``, ``small``, ``base``, or dict(embed_dim, depths, num_heads, mlp_ratio,
            qkv_bias).
        spec: ``paper``, ``released-cls`` or ``released-det``; the default is ``paper`` without and
            ``released-det`` with ``out_indices``.
        num_tokens: semantic tokens of a window, a square: 4, 9, 16.
        base_layers: ``paper``: Swin blocks of stage 3 before STGM; default 2 for 6 layers and 10
            for 18 ("moved": 1 and 8).
        units: STViT-R: layers of stage 3 as a list of units, each a list of ``dense``, ``stgm``,
            ``local``, ``global``, ``recover``; default one unit of six for every six layers.
        shortcut: ``released-cls``: add the pooled tokens to the output of STGM's first layer.
        use_global: ``released-cls``: learned global centres in the first unit.
        relative_pos: STViT-R: a position bias in local and global blocks, too; it is resized where
            the semantic grid is another than that of ``img_size``.
        pad_mask: ``released-det``: padding of windows is masked; False lets its zeros take part,
            as the released option does.
        released_pad_mask: ``released-det``: the released padding mask, faults included, instead of
            exact masking.
        img_size: pixels, for which the plan is made and checked; any size runs.
        window_size: side of attention windows, and of STGM's.
        window_padding: padding in Swin blocks, see :class:`SwinTransformer`.
        in_chans: channels of the image.
        out_indices: stages whose map is returned; None for classification.
        out_norms: a layer norm ``norm{i}`` on every returned map.
        drop_path_rate: stochastic depth, rising linearly over all layers.
        attention: form of attention, see ``ops.attention.attend``.
        with_cp: recompute activations in the backward pass.
        frozen_stages: freeze the stem (0) and the first k stages (k); -1 freezes nothing.
        init_cfg: mmengine's.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        spec: Spec | None = None,
        num_tokens: int = 9,
        base_layers: int | None = None,
        units: Sequence[Sequence[Layer]] | None = None,
        shortcut: bool = False,
        use_global: bool = False,
        relative_pos: bool = False,
        pad_mask: bool = True,
        released_pad_mask: bool = False,
        img_size: int | Sequence[int] = 224,
        window_size: int = 7,
        window_padding: str = "official",
        in_chans: int = 3,
        out_indices: Sequence[int] | None = None,
        out_norms: bool = True,
        drop_path_rate: float = 0.0,
        attention: str = "auto",
        with_cp: bool = False,
        frozen_stages: int = -1,
        init_cfg: Any = None,
    ) -> None:
        self.spec = _spec(spec, out_indices)
        masks = dict(pad_mask=pad_mask, released_pad_mask=released_pad_mask)
        learned = dict(use_global=use_global, relative_pos=relative_pos, shortcut=shortcut)
        _refuse_idle(self.spec, base_layers=base_layers, units=units, **learned, **masks)
        self.relative_pos = relative_pos
        sizes = sizes_of(arch, ARCHS, LEGAL_SIZES)
        depth, rates = _third_stage(sizes["depths"], drop_path_rate)
        stgm = dict(type="STGM", spec=self.spec, num_tokens=num_tokens, window=window_size)
        if self.spec == "paper":
            plan = [_paper_step(stgm, depth, base_layers, rates)]
        else:
            if self.spec == "released-cls":
                stgm["shortcut"] = shortcut
            stgm["padding"] = _padding(pad_mask, released_pad_mask)
            plan = _unit_steps(stgm, _units(units, depth), depth, rates, use_global)
        for step in plan:
            step["reduce"]["attention"] = attention
        super().__init__(
            arch=sizes,
            img_size=img_size,
            window_size=window_size,
            window_padding=window_padding,  # type: ignore[arg-type]
            window_shift="always" if self.spec == "released-det" else "auto",
            stem="conv",
            in_chans=in_chans,
            pool="mean",
            plan=plan,
            out_indices=out_indices,
            out_norms=out_norms,
            drop_path_rate=drop_path_rate,
            attention=attention,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            init_cfg=init_cfg,
        )

    def _stages(
        self, arch: str | Mapping[str, Any], window: int, attention: str
    ) -> tuple[list[StageSpec], list[BlockOptions]]:
        """Paper: stage 4 keeps the semantic tokens. Released: LayerScale on their blocks."""
        specs, options = super()._stages(arch, window, attention)
        if self.spec == "paper":
            specs[3] = specs[3]._replace(windowed=False, transition="linear")
        else:
            options[2] = options[2]._replace(layer_scale=1e-5, semantic_bias=self.relative_pos)
        return specs, options


def _spec(spec: Spec | None, out_indices: Sequence[int] | None) -> Spec:
    """STViT without maps, STViT-R with maps, unless said otherwise."""
    if spec not in (None, "paper", "released-cls", "released-det"):
        raise ValueError(f"spec={spec!r}; legal: 'paper', 'released-cls', 'released-det'")
    if spec == "paper":
        remedy = "leave spec out, or spec='released-det'"
        _refuse_maps(out_indices, "STViTSwin with spec='paper'", remedy)
    return spec or ("paper" if out_indices is None else "released-det")


#: Options that a specification knows; elsewhere they would change nothing.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "paper": ("base_layers",),
    "released-cls": ("units", "shortcut", "use_global", "relative_pos"),
    "released-det": ("units", "relative_pos", "pad_mask", "released_pad_mask"),
}


def _refuse_idle(spec: Spec, **given: Any) -> None:
    """Refuse options that the specification does not have."""
    for name, value in given.items():
        set_at_all = value is False if name == "pad_mask" else value not in (None, False)
        if set_at_all and name not in _OPTIONS[spec]:
            homes = [home for home, names in _OPTIONS.items() if name in names]
            raise ValueError(
                f"{name}={value!r} changes nothing with spec={spec!r}; leave it out, or take spec "
                f"{' or '.join(map(repr, homes))}"
            )


def _third_stage(depths: Sequence[int], drop_path_rate: float) -> tuple[int, list[float]]:
    """Layers of stage 3 and their rates."""
    if len(depths) != 4:
        raise ValueError(f"arch: depths={depths}; STViTSwin has four stages")
    return depths[2], drop_path_rates(drop_path_rate, depths)[2]


def _units(units: Any, depth: int) -> Sequence[Sequence[Layer]]:
    """The list of units that is meant."""
    if units is None:
        return default_units(depth)
    lists = (list, tuple)
    if not isinstance(units, lists) or not units or not all(isinstance(u, lists) for u in units):
        raise ValueError(
            f"units={units!r}; expected a list of units, each a list of layers: [{list(UNIT)}, ...]"
        )
    return units


def default_units(depth: int) -> list[Sequence[Layer]]:
    """One unit of six for every six layers."""
    if depth % len(UNIT) or not depth:
        raise ValueError(
            f"stage 3 has {depth} layers, no multiple of {len(UNIT)}; name the units yourself: "
            "units=[['dense', 'stgm', 'stgm', 'local', 'global', 'recover'], ...]"
        )
    return [UNIT] * (depth // len(UNIT))


def _paper_step(
    stgm: Mapping[str, Any], depth: int, base_layers: int | None, rates: Sequence[float]
) -> dict[str, Any]:
    base = base_layers if base_layers is not None else (2 if depth <= 6 else 10)
    if base < 0 or base + 2 > depth:
        raise ValueError(
            f"base_layers={base} and STGM's two layers need {base + 2} layers, but stage 3 has "
            f"{depth}"
        )
    reduce = {**stgm, "drop_path": tuple(rates[base : base + 2])}
    return dict(stage=2, span=(base, None), reduce=reduce, replaces=(base, base + 1))


def _unit_steps(
    stgm: Mapping[str, Any],
    units: Sequence[Sequence[Layer]],
    depth: int,
    rates: Sequence[float],
    use_global: bool,
) -> list[dict[str, Any]]:
    """Steps of a list of units.

    Raises:
        ValueError: the layers do not add up to the stage's, or a unit has no STGM and recovery in
            order.
    """
    total = sum(len(unit) for unit in units)
    if total != depth:
        raise ValueError(f"units: {total} layers, but stage 3 has {depth}; they must add up")
    steps, start = [], 0
    for number, unit in enumerate(units):
        first, layers, inside = _parse_unit(unit, number)
        open_at, close_at = start + first, start + len(unit) - 1
        reduce = {
            **stgm,
            "num_layers": layers,
            "drop_path": tuple(rates[open_at : open_at + layers]),
            "centres": use_global and number == 0,
        }
        recover = dict(
            type="AttentionRestore",
            layer_scale=1e-5,
            drop_path=rates[close_at],
            window=stgm["window"] if stgm["spec"] == "released-det" else None,
            padding=stgm["padding"],
        )
        replaced = (*range(open_at, open_at + layers), close_at)
        steps.append(
            dict(
                stage=2,
                span=(open_at, close_at),
                reduce=reduce,
                recover=recover,
                replaces=replaced,
                inside=inside,
            )
        )
        start += len(unit)
    return steps


def _padding(pad_mask: bool, released: bool) -> str:
    if released and not pad_mask:
        raise ValueError("pad_mask=False leaves nothing to released_pad_mask=True; take one")
    if not pad_mask:
        return "attended"
    return "released" if released else "masked"


def _parse_unit(unit: Sequence[Layer], number: int) -> tuple[int, int, tuple[Layer, ...]]:
    """Dense layers before STGM, layers of STGM, kinds inside."""
    legal = ("dense", "stgm", "local", "global", "recover")
    for layer in unit:
        if layer not in legal:
            raise ValueError(f"units[{number}]: unknown layer {layer!r}; legal: {list(legal)}")
    first = next((i for i, layer in enumerate(unit) if layer != "dense"), len(unit))
    layers = sum(layer == "stgm" for layer in unit)
    inside = tuple(unit[first + layers : -1])
    shape = ["dense"] * first + ["stgm"] * layers + list(inside) + ["recover"]
    if list(unit) != shape or layers < 2 or not set(inside) <= {"local", "global"}:
        raise ValueError(
            f"units[{number}]={list(unit)}: a unit is dense layers, at least two 'stgm', 'local' "
            f"and 'global' "
            "layers, and one 'recover' at its end"
        )
    return first, layers, inside


def _refuse_maps(out_indices: Sequence[int] | None, name: str, remedy: str) -> None:
    if out_indices is not None:
        raise ValueError(
            f"{name} is for classification and returns no maps, but "
            f"out_indices={tuple(out_indices)}; {remedy}"
        )
