"""TokenModel: exact padding and auxiliary losses around any mm model.

A detector calls ``backbone(img)`` and hands over nothing else. The valid image sizes reach the
backbone, and its trace comes back, through module hooks and one context variable: the only value
of this package that crosses a call unseen. It is set for one forward and in one thread, and holds
an entry for each backbone, so threads and models in one process never meet.

Shapes: B images, padded right and below to h x w pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from tokensparse.backbones import SwinTransformer, VisionTransformer, check_fit
from tokensparse.blocks.stems import blank_padding
from tokensparse.plan import step_losses
from tokensparse.registry import MODELS
from tokensparse.tokens import Trace

Sizes = Sequence[tuple[int, int]]
BACKBONES = (SwinTransformer, VisionTransformer)


@dataclass
class Call:
    """What one forward tells its backbone, and what comes back.

    Attributes:
        batch: (B, 3, h, w), as the model got it.
        valid: rows and columns of every image that are no padding; None where nothing is padded.
        want_trace: whether the traces are to be kept.
        taken: whether the pass that runs was asked for a trace by us, not by the model itself.
        passes: how often the backbone ran.
        traces: one for each pass, where kept.
    """

    batch: Tensor
    valid: Sizes | None
    want_trace: bool
    taken: bool = False
    passes: int = 0
    traces: list[Trace] = field(default_factory=list)


#: The running calls, by id of the backbone; replaced, never changed.
_CALLS: ContextVar[Mapping[int, Call]] = ContextVar(
    "tokensparse.token_model.calls", default=MappingProxyType({})
)
#: The same while ``torch.compile`` traces TokenModel, for it cannot follow context variables:
#: entries come and go within one trace, so a compiled forward touches nothing outside itself.
_TRACED: dict[int, Call] = {}


def _running(backbone: nn.Module) -> Call | None:
    """The call that this backbone serves."""
    if torch.compiler.is_dynamo_compiling() and id(backbone) in _TRACED:
        return _TRACED[id(backbone)]
    return _CALLS.get().get(id(backbone))


@contextmanager
def _handed_over(backbone: nn.Module, call: Call) -> Iterator[None]:
    """Let the hooks of a backbone find its call."""
    if torch.compiler.is_dynamo_compiling():
        _TRACED[id(backbone)] = call
        try:
            yield
        finally:
            del _TRACED[id(backbone)]
        return
    before = _CALLS.set({**_CALLS.get(), id(backbone): call})
    try:
        yield
    finally:
        _CALLS.reset(before)


@MODELS.register_module()
class TokenModel(BaseModel):
    """Any mm detector, segmentor or classifier whose backbone is one of ours.

    It hands the valid size of every image (``img_shape`` of its data sample) to the backbone: the
    content of padding then changes no prediction, and padded places of the maps are zero. While
    training it adds the auxiliary losses of the plan's reducers, as ``loss_step{k}_{name}``; where
    the backbone runs several times in one forward, their mean. Everything else is the model's own:
    its attributes, its ``data_preprocessor``, and its state dict, key for key, so checkpoints fit
    with and without the wrapper.

    Args:
        model: settings of the model, with ``type``; or the model.
        exact_padding: hand over the valid sizes; False for auxiliary losses alone.
        data_preprocessor: settings for a ``model`` that names none (mmengine's runner gives them).
        init_cfg: mmengine's.

    Raises:
        ValueError: the model holds no backbone of ours, or more than one; neck or heads do not fit
            it; or the backbone's settings let padding take part in attention.
    """

    def __init__(
        self,
        model: Mapping[str, Any] | nn.Module,
        exact_padding: bool = True,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        del self.data_preprocessor  # the model's own answers, see __getattr__
        if not isinstance(model, nn.Module):
            model = dict(model)
            if model.get("data_preprocessor") is None and data_preprocessor is not None:
                model["data_preprocessor"] = data_preprocessor
            check_fit(model)
            model = MODELS.build(model)
        self.model: nn.Module = model
        self.exact_padding = exact_padding
        backbone = _only_backbone(model)
        if exact_padding:
            _check_masked(backbone)
        if _hand_over not in backbone._forward_pre_hooks.values():
            backbone.register_forward_pre_hook(_hand_over, with_kwargs=True)
            backbone.register_forward_hook(_take_trace)
        self._register_state_dict_hook(_without_prefix)
        self._register_load_state_dict_pre_hook(_with_prefix)

    def __getattr__(self, name: str) -> Any:
        """What the wrapper has not is the model's: ``backbone``, ``out_channels``, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None:
                raise
            return getattr(model, name)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Any = None,
        mode: Literal["tensor", "loss", "predict"] = "tensor",
    ) -> Any:
        """The model's own forward, with valid sizes and auxiliary losses.

        Args:
            inputs: (B, 3, h, w), normalised and padded.
            data_samples: B samples of the model's kind. One without ``img_shape`` counts as
                unpadded, and so does all of the batch where none are given.
            mode: what is wanted.

        Returns:
            What the model returns; for ``loss`` with the auxiliary losses.

        Raises:
            ValueError: ``inputs`` is no batch of images, or does not fit ``data_samples``.
            RuntimeError: the model did not call its backbone.
        """
        valid = valid_sizes(inputs, data_samples) if self.exact_padding else None
        if valid is not None:
            inputs = blank_padding(inputs, torch.tensor(valid, device=inputs.device))
        backbone = next(m for m in self.model.modules() if isinstance(m, BACKBONES))
        call = Call(inputs, valid, want_trace=mode == "loss")
        with _handed_over(backbone, call):
            out = self.model(inputs, data_samples, mode=mode)
        if not call.passes and (call.valid is not None or call.want_trace):
            raise RuntimeError(
                f"{type(self.model).__name__} ran without calling its backbone as "
                "`backbone(img)`, so neither valid sizes nor losses could pass; wrap again after "
                "replacing the backbone, or leave TokenModel out"
            )
        if mode == "loss" and call.traces:
            out = {**out, **_mean_losses(backbone, call.traces)}
        return out


def valid_sizes(inputs: Tensor, data_samples: Any) -> Sizes | None:
    """Rows and columns of every image that are no padding.

    Args:
        inputs: (B, 3, h, w).
        data_samples: B samples with ``img_shape`` (rows, columns, ...), or anything else.

    Returns:
        B pairs; None where no image is padded, or where nothing is known about them.

    Raises:
        ValueError: see :meth:`TokenModel.forward`.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(
            f"inputs: {got}; TokenModel expects one batch of images (B, 3, h, w): wrap the model "
            "that gets it, or set exact_padding=False"
        )
    if not isinstance(data_samples, Sequence):
        return None
    if len(data_samples) != len(inputs):
        raise ValueError(f"data_samples: {len(data_samples)}, but inputs hold {len(inputs)} images")
    whole = (int(inputs.shape[-2]), int(inputs.shape[-1]))
    sizes = []
    for index, sample in enumerate(data_samples):
        shape = getattr(sample, "img_shape", None)
        rows, cols = whole if shape is None else (int(shape[0]), int(shape[1]))
        if not (0 < rows <= whole[0] and 0 < cols <= whole[1]):
            raise ValueError(
                f"data_samples[{index}].img_shape={tuple(shape)}; expected a size within the "
                f"batch's {whole}: the image lies at its top left, padded right and below"
            )
        sizes.append((rows, cols))
    return None if all(size == whole for size in sizes) else sizes


def _only_backbone(model: nn.Module) -> nn.Module:
    """The model's one backbone of ours."""
    name = type(model).__name__
    if any(isinstance(m, TokenModel) for m in model.modules()):
        raise ValueError(f"model: {name} holds a TokenModel already; one is enough")
    found = {n: m for n, m in model.named_modules() if isinstance(m, BACKBONES)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ValueError(
            f"model: {name} holds {len(found)} backbones of tokensparse ({', '.join(found)}); "
            "TokenModel serves one: wrap each of the models inside"
        )
    backbone = getattr(model, "backbone", None)
    got = "no backbone" if backbone is None else f"backbone {type(backbone).__name__}"
    raise ValueError(
        f"model: {name} has {got}; TokenModel needs one of tokensparse, such as "
        "backbone=dict(type='tokensparse.SwinTransformer', out_indices=(0, 1, 2, 3)), or leave "
        "TokenModel out"
    )


def _check_masked(backbone: nn.Module) -> None:
    """Refuse settings that let padding take part in attention."""
    wrong = []
    if getattr(backbone, "window_padding", "masked") != "masked":
        wrong.append("window_padding='official' (remedy: window_padding='masked')")
    for name, module in backbone.named_modules():
        padding = getattr(module, "padding", None)
        if padding in ("released", "attended"):
            remedy = "padding='masked'; for STViTSwin pad_mask=True, released_pad_mask=False"
            wrong.append(f"{name}: padding={padding!r} (remedy: {remedy})")
    if wrong:
        raise ValueError(
            f"exact_padding=True, but padding takes part in attention in "
            f"{type(backbone).__name__}: {'; '.join(wrong)}. Or set exact_padding=False for "
            "auxiliary losses alone"
        )


def _hand_over(backbone: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Before the backbone: valid sizes go in, a trace is asked for."""
    call = _running(backbone)
    if call is None:
        return None
    call.passes += 1
    kwargs = dict(kwargs)
    if call.valid is not None and len(args) < 2 and kwargs.get("valid") is None:
        img = args[0] if args else kwargs["img"]
        kwargs["valid"] = _valid_in(img, call.batch, call.valid)
    call.taken = call.want_trace and not kwargs.get("with_trace", False)
    if call.taken:
        kwargs["with_trace"] = True
    return args, kwargs


def _take_trace(backbone: nn.Module, args: Any, out: Any) -> Any:
    """After the backbone: the trace comes out, the model gets what it expects."""
    call = _running(backbone)
    if call is None or not call.taken:
        return None
    outs, trace = out
    call.traces.append(trace)
    return outs


def _valid_in(img: Tensor, batch: Tensor, valid: Sizes) -> Tensor | None:
    """(B', 2) valid pixels of what the backbone got: the batch, or a crop of it (a view).

    Raises:
        ValueError: it is neither.
    """
    if img.shape != batch.shape:
        first, top, left = _place(img, batch)
        size = img.shape[-2:]
        valid = [
            (min(max(rows - top, 0), size[0]), min(max(cols - left, 0), size[1]))
            for rows, cols in valid[first : first + len(img)]
        ]
        if all(own == tuple(size) for own in valid):
            return None
    return torch.tensor(valid, device=img.device)


def _place(img: Tensor, batch: Tensor) -> tuple[int, int, int]:
    """First image, top row and left column of a view into the batch (mmseg's sliding crops)."""
    same = img.untyped_storage().data_ptr() == batch.untyped_storage().data_ptr()
    if not same or img.stride() != batch.stride():
        raise ValueError(
            f"the backbone got an image {tuple(img.shape)} that is no crop of the padded batch "
            f"{tuple(batch.shape)}, so its padding is unknown; pad nothing (batches of one size), "
            "or set exact_padding=False"
        )
    rest = img.storage_offset() - batch.storage_offset()
    index = [0, 0, 0, 0]
    for axis in sorted(range(4), key=batch.stride, reverse=True):
        index[axis], rest = divmod(rest, batch.stride(axis))
    return index[0], index[2], index[3]


def _mean_losses(backbone: nn.Module, traces: Sequence[Trace]) -> dict[str, Tensor]:
    """Auxiliary losses, averaged over the passes of the backbone."""
    passes = [step_losses(backbone.plan, trace) for trace in traces]
    return {name: sum(losses[name] for losses in passes) / len(passes) for name in passes[0]}


def _without_prefix(module: nn.Module, state: Any, prefix: str, local_metadata: Any) -> None:
    """Saving: keys and versions of the model, as if nothing were around it."""
    inner = f"{prefix}model."
    for key in [k for k in state if k.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)
    metadata = state._metadata
    for key in [k for k in metadata if _dotted(k).startswith(inner)]:
        metadata[(prefix + _dotted(key)[len(inner) :])[:-1]] = metadata.pop(key)


def _with_prefix(state: Any, prefix: str, *ignored: Any) -> None:
    """Loading: the way back; versions are added beside those that are there."""
    inner = f"{prefix}model."
    for key in [k for k in state if k.startswith(prefix)]:
        state[inner + key[len(prefix) :]] = state.pop(key)
    metadata = getattr(state, "_metadata", None) or {}
    for key in list(metadata):
        dotted = _dotted(key)
        if dotted.startswith(prefix) and not dotted.startswith(inner):
            metadata[(inner + dotted[len(prefix) :])[:-1]] = metadata[key]


def _dotted(name: str) -> str:
    """A module's name as the prefix of its keys."""
    return f"{name}." if name else ""
