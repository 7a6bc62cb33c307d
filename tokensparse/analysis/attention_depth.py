"""How few keys take most of the attention, block by block.

In deep layers of a ViT all queries look at the same few keys: vertical lines in the attention map
(STViT, arXiv:2303.08685). Shapes: B images (or windows), h heads, n queries, m keys.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokensparse.tokens import Trace


class DepthRow(NamedTuple):
    """Attention of one block, averaged over images (and windows, where there are any).

    Attributes:
        stage: of the backbone.
        block: of that stage.
        keys: m, prefix tokens included.
        top_share: share of the attention that the most attended keys receive, see
            :func:`top_share`.
        uniform_share: what :func:`top_share` would be under uniform attention.
        effective_keys: of all queries and heads together, see :func:`effective_keys`; few of them
            are vertical lines.
        effective_keys_per_query: of a query in a head; few of them are sharp attention.
    """

    stage: int
    block: int
    keys: int
    top_share: float
    uniform_share: float
    effective_keys: float
    effective_keys_per_query: float


def received(attn: Tensor) -> Tensor:
    """Attention that each key receives, averaged over queries and heads: (B, h, n, m) -> (B, m)."""
    return attn.float().mean((1, 2))


def top_share(mass: Tensor, share: float) -> Tensor:
    """Share of the mass that the most attended ``share`` of the keys receives.

    ``share * m`` keys count, the last one in part; at least one. Uniform mass gives ``share`` (or
    1 / m, where that is more), mass on one key gives 1.

    Args:
        mass: (..., m), not negative.
        share: of the keys, in (0, 1].

    Returns:
        (...,) in 0..1.

    Raises:
        ValueError: ``share`` is outside (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share={share!r}; expected a share of the keys in (0, 1], such as 0.1")
    keys = mass.shape[-1]
    place = torch.arange(keys, device=mass.device, dtype=mass.dtype)
    weight = (max(1.0, share * keys) - place).clamp(0.0, 1.0)
    ranked = mass.sort(-1, descending=True).values
    return (ranked * weight).sum(-1) / mass.sum(-1)


def effective_keys(mass: Tensor) -> Tensor:
    """Exponential of the entropy of a distribution over keys: m if uniform, 1 for one key.

    Args:
        mass: (..., m), not negative.

    Returns:
        (...,) in 1..m.
    """
    p = mass / mass.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()


def measure(attn: Tensor, share: float) -> tuple[float, float, float]:
    """Sums over the B maps of ``top_share``, ``effective_keys`` and ``effective_keys_per_query``.

    Args:
        attn: (B, h, n, m), rows sum to 1.
        share: see :func:`top_share`.
    """
    attn = attn.float()
    mass = received(attn)
    own = effective_keys(attn).mean((1, 2))
    sums = (top_share(mass, share), effective_keys(mass), own)
    return tuple(float(value.sum()) for value in sums)  # type: ignore[return-value]


def block_maps(backbone: Any, trace: Trace) -> list[tuple[int, int, Tensor]]:
    """(stage, block, attention (B * windows, h, n, m)) of every block of the trace."""
    maps = []
    for record in trace.blocks:
        heads = backbone.stages[record.stage].blocks[str(record.block)].attn.num_heads
        attn = record.attn.unflatten(1, (-1, heads)).flatten(0, 1)
        maps.append((record.stage, record.block, attn))
    return maps


def attention_maps(backbone: nn.Module, images: Tensor) -> list[tuple[int, int, Tensor]]:
    """Run a backbone and take the attention of every block.

    Args:
        backbone: one of tokensparse.
        images: (B, 3, rows, columns), normalised.

    Returns:
        (stage, block, attention (B * windows, h, n, m)); layers that a reducer or a recovery stands
        for have no self-attention and are left out.

    Raises:
        ValueError: a backbone that does not show its attention.
    """
    if not hasattr(backbone, "forward_tokens"):
        raise ValueError(
            f"{type(backbone).__name__} does not show its attention (forward_tokens); take a "
            "backbone of tokensparse"
        )
    with torch.no_grad():
        _, trace = backbone.forward_tokens(images, collect=frozenset({"attn"}))
    return block_maps(backbone, trace)


def attention_depth(
    backbone: nn.Module, batches: Iterable[Tensor], share: float = 0.1
) -> list[DepthRow]:
    """Measure every block over some images, in eval mode.

    Args:
        backbone: one of tokensparse; its mode is put back.
        batches: normalised images (B, 3, rows, columns), all of one size.
        share: of the keys, see :func:`top_share`.

    Returns:
        One row a block, in the order of the blocks.

    Raises:
        ValueError: no images, a wrong ``share``, or a backbone that does not show its attention.
    """
    training = [m for m in backbone.modules() if m.training]
    backbone.eval()
    sums: dict[tuple[int, int], list[float]] = {}
    keys: dict[tuple[int, int], int] = {}
    try:
        for images in batches:
            for stage, block, attn in attention_maps(backbone, images):
                total = sums.setdefault((stage, block), [0.0] * 4)
                values = (float(attn.shape[0]), *measure(attn, share))
                total[:] = [a + b for a, b in zip(total, values, strict=True)]
                keys[stage, block] = attn.shape[-1]
    finally:
        for module in training:
            module.training = True
    if not sums:
        raise ValueError("batches: no images; give at least one")
    return [
        DepthRow(stage, block, m, top / count, max(share, 1.0 / m), all_keys / count, own / count)
        for ((stage, block), (count, top, all_keys, own)), m in zip(
            sums.items(), keys.values(), strict=True
        )
    ]
