"""Start a backbone of ours from a file: ``init_cfg=dict(type='Pretrained', checkpoint=...)``.

What mmdet's and mmseg's Swin does for the checkpoints of its kind, for every family that this
package can read, and without running anything that a file brings along.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model.base_module import update_init_info
from torch import Tensor, nn

from tokensparse.blocks.stems import grid_of
from tokensparse.checkpoint import SOURCES, CheckpointError, read_state, translate
from tokensparse.checkpoint.source import keep_prefix
from tokensparse.ops.resize import resize_positions

State = dict[str, Tensor]
MIN_SHARE = 0.2
_PREFIX = ("cls_token", "dist_token", "reg_token")
_SPARTA_MAPS = SOURCES["sparseswin-det"].spatial


class Pretrained:
    """``init_cfg`` of type ``Pretrained`` for our backbones.

    The file may hold a backbone, or a classifier, detector or segmentor around one (``backbone.``
    before its names), in our names or in those of any family of ``checkpoint.SOURCES`` (official
    Swin, timm, torchvision, mm*, released STViT-R and SparseSwin); which one is found out from
    names and shapes. Position tables and SparTa's maps of another image size, and bias tables of
    another window size, are interpolated; what does not fit keeps its values, and the log names it.

    Args:
        checkpoint: path of a file, or its http address; it is fetched once, to torch's hub folder.
        prefix: take the tensors below this prefix alone, such as ``backbone.``.
        map_location: accepted as mmengine's is; tensors are read on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read safely, or less than a fifth of the backbone is in it.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None, map_location: Any = "cpu"):
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        """Overwrite the parameters of ``module`` that the file holds."""
        try:
            theirs = read_state(local_file(self.checkpoint))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"init_cfg.checkpoint: {error}; to start from scratch set init_cfg=None"
            ) from error
        if self.prefix is not None:
            theirs = _below(theirs, self.prefix, self.checkpoint)
        own = module.state_dict()
        kind, state = recognised(theirs, module)
        share = sum(v.numel() for v in state.values()) / sum(v.numel() for v in own.values())
        if share < MIN_SHARE:
            raise CheckpointError(
                f"init_cfg: only {share:.0%} of {type(module).__name__}'s parameters are in "
                f"{self.checkpoint} (read as {kind}); are its sizes those of this backbone? To "
                "start from scratch set init_cfg=None"
            )
        module.load_state_dict(state, strict=False)
        left = [name for name in own if name not in state]
        message = f"{share:.0%} of {type(module).__name__} from {self.checkpoint} ({kind})"
        print_log(f"{message}; not in it: {left}", "current", logging.INFO)
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=message)


def own_reader(init_cfg: Any) -> Any:
    """The same settings, with :class:`Pretrained` for mmengine's initialiser of that name."""
    if isinstance(init_cfg, Sequence) and not isinstance(init_cfg, str):
        return [own_reader(one) for one in init_cfg]
    if isinstance(init_cfg, Mapping) and init_cfg.get("type") == "Pretrained":
        return {**init_cfg, "type": Pretrained}
    return init_cfg


def local_file(checkpoint: str) -> str:
    """Path of a file, fetched where the name is an http address."""
    if urlparse(str(checkpoint)).scheme not in ("http", "https"):
        return checkpoint
    folder = Path(torch.hub.get_dir(), "checkpoints")
    path = folder / Path(urlparse(checkpoint).path).name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(checkpoint, str(path))
    return str(path)


def recognised(theirs: State, module: nn.Module) -> tuple[str, State]:
    """Whose names a file has, and what of it fits a backbone.

    Args:
        theirs: released tensors by name.
        module: the backbone.

    Returns:
        Name of the family, or ``ours``, and the tensors that fit, by our names.
    """
    inner = keep_prefix(theirs, "backbone.")
    found = {"ours": fitting(inner, module)}
    for name, family in SOURCES.items():
        for state in (inner, theirs) if inner is not theirs else (theirs,):
            try:
                renamed = translate(family.prepare(dict(state)), family.rules).state
            except (CheckpointError, KeyError):
                continue
            fits = fitting(renamed, module)
            if len(fits) > len(found.get(name, ())):
                found[name] = fits
    best = max(found, key=lambda name: sum(v.numel() for v in found[name].values()))
    return best, found[best]


def fitting(state: State, module: nn.Module) -> State:
    """Tensors of the same name and shape; maps over positions and bias tables are resized."""
    own = module.state_dict()
    if "pos_embed" in state and "pos_embed" in own:
        state = {**state, "pos_embed": resized_positions(state, module)}
    if _SPARTA_MAPS[0].name in state and _SPARTA_MAPS[0].name in own:
        state = resized_sparta(state, own, module)
    fits = {}
    for name, value in state.items():
        if name not in own:
            continue
        if name.endswith("relative_position_bias_table") and value.shape != own[name].shape:
            value = resized_table(value, own[name])
        if value.shape == own[name].shape:
            fits[name] = value
    return fits


def resized_positions(state: State, module: Any) -> Tensor:
    """(1, P + N, C) position table of a square map at the backbone's grid and prefix tokens."""
    table, p = state["pos_embed"], module.num_prefix_tokens
    theirs = sum(state[k].shape[1] for k in _PREFIX if k in state and state[k].ndim == 3)
    side = _side(table.shape[1] - theirs) if table.ndim == 3 else 0
    if not side or theirs < p:
        return table
    antialias = module.position_antialias
    places = resize_positions(table[:, theirs:], (side, side), module.grid, antialias)
    return torch.cat([table[:, :p], places], 1)


def resized_sparta(state: State, own: State, module: Any) -> State:
    """SparTa's maps of a square image at the backbone's own size."""
    state = dict(state)
    side = _side(state[_SPARTA_MAPS[0].name].shape[-1]) * _SPARTA_MAPS[0].stride({})
    new = (module.grid[0] * module.stride, module.grid[1] * module.stride)
    for part in _SPARTA_MAPS:
        value = state.get(part.name)
        if side and value is not None and value.shape != own[part.name].shape:
            stride = part.stride({})
            old_grid = grid_of((side, side), stride)
            if math.prod(old_grid) in value.shape:
                state[part.name] = part.resize(value, old_grid, grid_of(new, stride))
    return state


def _side(places: int) -> int:
    """Side of a square map, or 0."""
    side = math.isqrt(max(places, 0))
    return side if side * side == places else 0


def resized_table(table: Tensor, like: Tensor) -> Tensor:
    """(L, heads) position bias table at another window size, as mmdet's Swin does it."""
    if table.ndim != 2 or table.shape[1] != like.shape[1]:
        return table
    old, new = (round(t.shape[0] ** 0.5) for t in (table, like))
    if old * old != table.shape[0] or new * new != like.shape[0]:
        return table
    square = table.T.reshape(1, -1, old, old)
    return F.interpolate(square, size=(new, new), mode="bicubic").flatten(2)[0].T.contiguous()


def _below(theirs: State, prefix: str, name: str) -> State:
    prefix = prefix if prefix.endswith(".") else f"{prefix}."
    inner = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    if not inner:
        raise CheckpointError(f"init_cfg: no tensor of {name} lies below prefix={prefix!r}")
    return inner
