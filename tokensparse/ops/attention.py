"""One attention function in three forms, tested equal: eager, fused (SDPA), compiled.

Shapes: B batch, W windows, h heads, n queries, m keys, D head dim. Attention over a set has no W.
"""

from functools import cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Form = Literal["eager", "sdpa", "compiled"]

#: Added to logits of keys that must not be seen. Finite, so that a row without any
#: visible key stays finite, and small enough for half precision.
HIDDEN = -1.0e4


class FormChoice(NamedTuple):
    """One row of the table below.

    Attributes:
        device: torch device type.
        dtype: of queries and keys, under autocast too: ``fp32`` (or more), ``bf16``, ``fp16``.
        training: gradients are recorded.
        learned_bias: a bias that needs a gradient is added to the logits.
    """

    device: str
    dtype: str
    training: bool
    learned_bias: bool


#: Where eager is the fastest form that needs no compiler, as ``tools/measure_attention_forms.py``
#: found (docs/results/attention_forms.json holds device and figures); what is not listed uses SDPA.
#: CUDA rows are not measured: there, SDPA with a learned bias takes the slow path in training.
#: ``forward`` never measures.
FASTEST: dict[FormChoice, Form] = {
    FormChoice("cpu", "fp32", True, True): "eager",
    FormChoice("cpu", "bf16", False, False): "eager",
    FormChoice("cpu", "bf16", True, False): "eager",
    FormChoice("cpu", "bf16", True, True): "eager",
    FormChoice("cuda", "fp32", True, True): "eager",
    FormChoice("cuda", "bf16", True, True): "eager",
    FormChoice("cuda", "fp16", True, True): "eager",
}
HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def choose_form(q: Tensor, bias: Tensor | None) -> Form:
    """The fastest measured form for these inputs."""
    training = torch.is_grad_enabled() and q.requires_grad
    learned = training and bias is not None and bias.requires_grad
    choice = FormChoice(q.device.type, HALVES.get(q.dtype, "fp32"), training, learned)
    return FASTEST.get(choice, "sdpa")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    form: Form | Literal["auto"] = "auto",
    keep: Tensor | None = None,
    want_attn: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention, scaled by D^-0.5.

    Args:
        q: (B, W, h, n, D), or (B, h, n, D).
        k: (B, W, h, m, D), or (B, h, m, D).
        v: (B, W, h, m, D), or (B, h, m, D).
        bias: added to the scaled logits; broadcasts to (B, W, h, n, m), or (B, h, n, m), never
            expanded over the batch.
        form: which implementation; ``auto`` asks the table of measurements.
        keep: (B, W, 1, 1, m), or (B, 1, 1, m), in 0..1, multiplies the softmax numerator (soft
            pruning, DynamicViT arXiv:2106.02034, Sec. 3.3); a token always sees itself.
        want_attn: also return the attention; takes the eager form.

    Returns:
        What ``q`` looks like, and the attention (B, W, h, n, m), or (B, h, n, m), or None.
    """
    if keep is not None or want_attn:
        return _eager(q, k, v, bias, keep)
    if form == "auto":
        form = choose_form(q, bias)
    if form == "sdpa":
        return _sdpa(q, k, v, bias), None
    if form == "compiled" and not torch.compiler.is_compiling():
        return _compiled()(q, k, v, bias), None
    return _eager_out(q, k, v, bias), None


def check_form(form: str) -> None:
    """Raise ValueError unless ``form`` is ``auto`` or one of the three."""
    legal = ("auto", *get_args(Form))
    if form not in legal:
        raise ValueError(f"attention={form!r}; legal: {list(legal)}")


def _eager(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    k = k.contiguous()  # else the product copies its transpose, against the grain
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    attn = logits.softmax(-1) if keep is None else kept_softmax(logits, keep)
    return attn.to(v.dtype) @ v, attn


def _eager_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return _eager(q, k, v, bias)[0]


@cache
def _compiled():  # type: ignore[no-untyped-def]  # torch.compile is untyped
    return torch.compile(_eager_out, dynamic=False)


def kept_softmax(logits: Tensor, keep: Tensor, eps: float = 1e-6) -> Tensor:
    """Softmax with numerators times ``keep``; the diagonal always counts (DynamicViT, Eq. 10-11).

    Args:
        logits: (..., n, m).
        keep: broadcasts to (..., 1, m).
        eps: added to the denominator, and a share of it to every numerator.

    Returns:
        (..., n, m), rows sum to 1.
    """
    n, m = logits.shape[-2:]
    keep = keep.float()
    if n == m:
        eye = torch.eye(n, device=logits.device, dtype=keep.dtype)
        keep = keep + (1.0 - keep) * eye
    top = logits.float().amax(-1, keepdim=True).detach()
    weight = (logits.float() - top).exp() * keep
    return ((weight + eps / m) / (weight.sum(-1, keepdim=True) + eps)).to(logits.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Fold windows so that the bias is one broadcast tensor, whatever the batch."""
    if bias is not None:
        bias = bias.to(q.dtype)
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if bias is not None and (bias.shape[0] > 1 or bias.shape[1] > 1):
        return _sdpa_folded(q, k, v, bias)
    mask = None if bias is None else bias[0]
    out = F.scaled_dot_product_attention(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask
    )
    return out.view(*q.shape[:2], *out.shape[1:])


def _sdpa_folded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    windows, heads = q.shape[1:3]
    if windows > 1 and heads > 1 and (bias.shape[1] == 1 or bias.shape[2] == 1):
        bias = bias.expand(-1, windows, heads, -1, -1)
    mask = bias.flatten(1, 2)
    out = F.scaled_dot_product_attention(
        q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), attn_mask=mask
    )
    folded: Tensor = out.unflatten(1, (windows, heads))
    return folded
