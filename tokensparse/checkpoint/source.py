"""What a family of released weights must say, and sizes read off tensors in our names.

A family is one file of this package: it holds ``SOURCES``, a dict of :class:`Source` by name;
nothing else has to be told.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tokensparse.checkpoint.names import Rule
from tokensparse.checkpoint.reading import CheckpointError, State

Settings = dict[str, Any]
Grid = tuple[int, int]

#: Dimensions of the tensors that sizes are read off, by our names; all others are compared with
#: the model afterwards.
_RANKS = (
    (re.compile(r"(?:cls|dist|reg)_token|pos_embed|plan\..*\.centres"), 3),
    (re.compile(r"stem\.(?:proj|conv\d)\.weight|plan\.steps\.0\.reduce\.conv\.weight"), 4),
    (re.compile(r".*relative_position_bias_table|.*\.mlp\.fc[12]\.weight|head\..*\.weight"), 2),
    (re.compile(r"plan\.steps\.0\.reduce\.spatial\.weight"), 2),
    (re.compile(r".*\.norm[12]\.(?:weight|bias)|.*\.mlp\.fc1\.bias|head\..*\.bias"), 1),
)


def unchanged(theirs: State) -> State:
    """The state dict itself."""
    return theirs


class Source(NamedTuple):
    """One family of released weights.

    Attributes:
        rules: released names to ours; head names start with ``head.``, all others belong to the
            backbone.
        settings: (state in our names, keywords of the caller) -> settings of the backbone that was
            released.
        prepare: released tensors before renaming: what no rule can say.
        keywords: what cannot be read off the tensors.
        dense: the file holds a backbone that gives maps, and no head.
        own_plan: the backbone brings its plan along.
        spatial: tensors that hold one value per position.
        plain_maps: maps whose norm is not in the file come without a norm.
        heads: where the file holds a whole detector: released tensors -> those of its neck and
            heads, checked, by the names that mm's model has today; ``prepare`` leaves them out.
    """

    rules: tuple[Rule, ...]
    settings: Callable[[State, Mapping[str, Any]], Settings]
    prepare: Callable[[State], State] = unchanged
    keywords: tuple[str, ...] = ()
    dense: bool = False
    own_plan: bool = False
    spatial: tuple["Spatial", ...] = ()
    plain_maps: bool = False
    heads: Callable[[State], State] | None = None


class Spatial(NamedTuple):
    """A tensor that holds one value per position, resized where ``img_size`` is overridden.

    Attributes:
        name: our name.
        stride: pixels per position.
        resize: (tensor, old grid, new grid) -> tensor.
    """

    name: str
    stride: Callable[[Settings], int]
    resize: Callable[[Tensor, Grid, Grid], Tensor]


def wrong_ranks(state: State) -> list[tuple[str, int]]:
    """(our name, dimensions expected) of tensors whose sizes cannot be read off."""
    found = []
    for name, value in state.items():
        rank = next((rank for pattern, rank in _RANKS if pattern.fullmatch(name)), value.ndim)
        if value.ndim != rank or 0 in value.shape:
            found.append((name, rank))
    return found


def commonest(numbers: Iterable[int], missing: str) -> int:
    """What most tensors say, so that one misshapen tensor is found out; the first wins a tie.

    Raises:
        KeyError: there are no numbers; it names ``missing``.
    """
    votes = Counter(numbers)
    if not votes:
        raise KeyError(missing)
    return votes.most_common(1)[0][0]


def width(state: State, stage: int) -> int:
    """C of a stage, as most layer norms of its blocks say."""
    norm = re.compile(rf"stages\.{stage}\.blocks\.\d+\.norm[12]\.(?:weight|bias)")
    sides = (value.shape[0] for name, value in state.items() if norm.fullmatch(name))
    return commonest(sides, f"stages.{stage}.blocks.0.norm1.weight")


def has_qkv_bias(state: State, stages: Sequence[int]) -> bool:
    """Whether any block of these stages has biases on query, key and value."""
    starts = tuple(f"stages.{stage}." for stage in stages)
    return any(k.startswith(starts) and k.endswith("attn.qkv.bias") for k in state)


def patch_weight(state: State) -> Tensor:
    """(C, channels, side, side): weight of the patch convolution; refused where it is none."""
    weight = state["stem.proj.weight"]
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise CheckpointError(
            f"patch convolution misshapen: {tuple(weight.shape)}, expected (C, in, side, side)"
        )
    return weight


def count(state: State, template: str) -> int:
    """How many consecutive numbers, from 0, stand in place of ``{}`` in the names."""
    before, after = template.split("{}")
    number = 0
    while any(name.startswith(f"{before}{number}{after}") for name in state):
        number += 1
    return number


def mlp_ratio(state: State, block: str) -> float:
    """Hidden channels of a feed-forward as a multiple of its channels; the product is exact.

    All blocks of the stage of ``block`` are asked.
    """
    stage = int(block.split(".")[1])
    fc = re.compile(rf"stages\.{stage}\.blocks\.\d+\.mlp\.(?:fc1\.(?:weight|bias)|fc2\.weight)")
    hidden = commonest(
        (v.shape[1 if "fc2" in name else 0] for name, v in state.items() if fc.fullmatch(name)),
        f"{block}.mlp.fc1.weight",
    )
    dim = width(state, stage)
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def side_of(places: int, what: str) -> int:
    """Side of a square map, refused where there is none."""
    side = math.isqrt(places)
    if side * side != places:
        raise CheckpointError(
            f"{what}: {places} positions are no square map; say the size of the image that they "
            "belong to: img_size=(rows, columns)"
        )
    return side


def given_size(keywords: Mapping[str, Any], stride: int, places: int, what: str) -> Any:
    """Image size that the file was made for: square, or the caller's where only that fits.

    Args:
        keywords: of the caller; ``img_size`` may be there.
        stride: pixels per position.
        places: positions in the file.
        what: name for messages.

    Returns:
        (rows, columns) in pixels.
    """
    size = keywords.get("img_size")
    if size is not None and math.isqrt(places) ** 2 != places:
        rows, cols = (size, size) if isinstance(size, int) else size
        if -(-rows // stride) * -(-cols // stride) == places:
            return rows, cols
    side = side_of(places, what) * stride
    return side, side


def vit_settings(state: State, keywords: Mapping[str, Any], **fixed: Any) -> Settings:
    """Settings of ``VisionTransformer`` from tensors in our names.

    Args:
        state: tensors by our names.
        keywords: ``num_heads``, ``img_size`` where given.
        **fixed: what the family fixes, such as ``norm_eps``.

    Returns:
        Settings, with ``type``.

    Raises:
        KeyError: a tensor that must be there is not.
        CheckpointError: something cannot be read off the tensors.
    """
    _, chans, patch, _ = patch_weight(state).shape
    dim = width(state, 0)
    depth = count(state, "stages.0.blocks.{}.")
    size = _vit_image(state, keywords, patch)
    heads = keywords.get("num_heads")
    if heads is None:
        if dim % 64:
            raise CheckpointError(
                f"num_heads cannot be read off the tensors, and {dim} channels are no multiple of "
                "64; say num_heads=..."
            )
        heads = dim // 64
    if heads < 1 or dim % heads:
        raise CheckpointError(f"num_heads={heads} does not divide the {dim} channels in the file")
    arch = dict(
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio(state, "stages.0.blocks.0"),
        qkv_bias=has_qkv_bias(state, [0]),
    )
    return dict(
        type="tokensparse.VisionTransformer",
        arch=arch,
        img_size=size,
        patch_size=patch,
        in_chans=chans,
        class_token="cls_token" in state,
        distilled="dist_token" in state,
        num_registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        **fixed,
    )


def _vit_image(state: State, keywords: Mapping[str, Any], patch: int) -> tuple[int, int]:
    """Image size of the position table; a prefix token that is missing is named (KeyError)."""
    prefix = [state[k].shape[1] for k in ("cls_token", "dist_token", "reg_token") if k in state]
    places = max(state["pos_embed"].shape[1] - sum(prefix), 0)
    try:
        return given_size(keywords, patch, places, "the position table")
    except CheckpointError:
        whole = math.isqrt(places - 1) ** 2 == places - 1 if places else False
        for name, wanted in (("cls_token", True), ("dist_token", "head.fc_dist.weight" in state)):
            if whole and wanted and name not in state:
                raise KeyError(name) from None
        raise


def swin_trunk(state: State, stages: int) -> tuple[Settings, int]:
    """(arch, window) of the first stages of a Swin, from tensors in our names."""
    depths = tuple(count(state, f"stages.{i}.blocks.{{}}.") for i in range(stages))
    tables = [_tables(state, i) for i in range(stages)]
    first = "stages.{}.blocks.0.attn.relative_position_bias_table"
    places = commonest((table.shape[0] for found in tables for table in found), first.format(0))
    window = (math.isqrt(places) + 1) // 2
    heads = tuple(
        commonest((t.shape[1] for t in found), first.format(i)) for i, found in enumerate(tables)
    )
    arch = dict(
        embed_dim=width(state, 0),
        depths=depths,
        num_heads=heads,
        mlp_ratio=mlp_ratio(state, "stages.0.blocks.0"),
        qkv_bias=has_qkv_bias(state, range(stages)),
    )
    return arch, window


def _tables(state: State, stage: int) -> list[Tensor]:
    """Position bias tables of a stage."""
    start, end = f"stages.{stage}.", ".relative_position_bias_table"
    return [value for name, value in state.items() if name.startswith(start) and name.endswith(end)]


def swin_settings(state: State, keywords: Mapping[str, Any], **fixed: Any) -> Settings:
    """Settings of ``SwinTransformer`` from tensors in our names; see :func:`vit_settings`."""
    stages = count(state, "stages.{}.blocks.")
    arch, window = swin_trunk(state, max(stages, 1))
    weight = patch_weight(state)
    settings = dict(
        type="tokensparse.SwinTransformer",
        arch=arch,
        img_size=window * weight.shape[2] * 2 ** (stages - 1),
        window_size=window,
        patch_size=weight.shape[2],
        in_chans=weight.shape[1],
        **fixed,
    )
    norms = tuple(i for i in range(stages) if any(k.startswith(f"norm{i}.") for k in state))
    return {**settings, "out_indices": norms} if norms else settings


def keep_prefix(theirs: State, prefix: str) -> State:
    """Where names start with a prefix: those names, without it; else everything."""
    inner = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    return inner or theirs


def last_number(theirs: State, pattern: str) -> int:
    """The largest number that a pattern's group finds at the start of a name, or -1."""
    found = [re.match(pattern, name) for name in theirs]
    return max((int(match.group(1)) for match in found if match), default=-1)
