"""Reducers that exist only here, one for each thing that a coming method needs of the core."""

import pytest
import torch
from small import image, small_swin, small_vit
from torch import nn

from tokensparse.interfaces import Reducer
from tokensparse.tokens import HardMap, Hints, SoftMap, TokenMap, Tokens

Reduced = tuple[Tokens, TokenMap | None]


class Pooled(Reducer):
    """Replaces blocks and tiles a grid (as STGM does): 2 x 2 means, then a layer of its own."""

    needs_grid = True
    tile = 2

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, num_heads, grid)
        self.fc = nn.Linear(dim, dim)

    def num_out(self, n: int, n_start: int) -> int:
        return n // 4

    def out_grid(self, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        return None if grid is None else (grid[0] // 2, grid[1] // 2)

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> Reduced:
        h, w = t.grid
        place = torch.arange(h * w, device=t.x.device)
        slot = (place // w // 2) * (w // 2) + place % w // 2
        pool = HardMap(slot.expand(t.x.shape[0], -1), h * w // 4)
        x = self.fc(pool.down(t.x) / 4)
        out = Tokens(x, pool.down(t.size.contiguous()), pool.down(t.pos) / 4, self.out_grid(t.grid))
        return out, pool


class Wider(Reducer):
    """Changes the width."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, num_heads, grid)
        self.out_dim = 2 * dim
        self.fc = nn.Linear(dim, 2 * dim)

    def num_out(self, n: int, n_start: int) -> int:
        return n // 2

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> Reduced:
        n, half = t.x.shape[1], t.x.shape[1] // 2
        share = torch.eye(half, device=t.x.device).repeat(1, 2)[None, :, :n]
        x = self.fc(share @ t.x)
        return Tokens(x, share @ t.size, (share @ t.pos) / 2), SoftMap(share)


class Gated(Reducer):
    """A gradient-carrying keep (DynamicViT): nothing is dropped while training."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, num_heads, grid)
        self.score = nn.Linear(dim, 1)

    def num_out(self, n: int, n_start: int) -> int:
        return n

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> Reduced:
        soft = self.score(t.x).sigmoid()
        keep = (soft > 0.5).float() + soft - soft.detach()
        slot = torch.arange(t.x.shape[1], device=t.x.device).expand(t.x.shape[0], -1)
        return t._replace(keep=keep), HardMap(slot, t.x.shape[1])


class Running(Reducer):
    """A carried score (Evo-ViT, A-ViT): remembers, and drops by what it remembers."""

    where = "inside"
    needs = frozenset({"cls_attn"})

    def num_out(self, n: int, n_start: int) -> int:
        return n - 4

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> Reduced:
        score = hints.cls_attn.unsqueeze(-1)
        score = score if t.carry is None else 0.5 * t.carry + 0.5 * score
        n = t.x.shape[1]
        index = score[..., 0].topk(n - 4).indices.sort().values
        slot = torch.full((t.x.shape[0], n), n - 4, device=t.x.device)
        slot = slot.scatter(1, index, torch.arange(n - 4, device=t.x.device).expand_as(index))

        def take(x: torch.Tensor) -> torch.Tensor:
            return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

        out = Tokens(take(t.x), take(t.size), take(t.pos), carry=take(score))
        return out, HardMap(slot, n - 4)


class FewQueries(Reducer):
    """A query-only reduction (DGE): every fourth token asks, all answer."""

    where = "attention"

    def num_out(self, n: int, n_start: int) -> int:
        return -(-n // 4)

    def forward(self, t: Tokens, hints: Hints, want_map: bool) -> Reduced:
        slot = (torch.arange(t.x.shape[1], device=t.x.device) // 4).expand(t.x.shape[0], -1)
        m = self.num_out(t.x.shape[1], 0)
        out = Tokens(t.x[:, ::4], torch.full_like(t.size[:, ::4], 4.0), t.pos[:, ::4])
        return out, HardMap(slot, m)


def trains(model: nn.Module, size: tuple[int, int]) -> None:
    outs = model.train()(image(size))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for a, b in zip(model(image(size)), compiled(image(size)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_replaced_blocks_and_local_windows_of_semantic_tokens() -> None:
    step = dict(
        stage=2,
        span=(0, 3),
        reduce=dict(type=Pooled),
        recover=dict(type="AttentionRestore"),
        replaces=(0, 3),
        inside=("local", "global"),
    )
    model = small_swin(plan=[step], out_indices=(1, 2, 3))
    assert list(model.stages[2].blocks) == ["1", "2"]
    assert [row.kind for row in model.plan.preview((32, 32))][4:8] == [
        "replaced",
        "local",
        "global",
        "replaced",
    ]
    assert model.plan.counts(1024)[4:8] == [16, 16, 16, 64]
    trains(model, (128, 128))


def test_a_wider_stage() -> None:
    model = small_vit(plan=[dict(span=(2, None), reduce=dict(type=Wider))], class_token=False)
    assert model.num_features == 64
    trains(model, (64, 64))
    dense = [dict(span=(2, None), reduce=dict(type=Wider), recover=dict(type="AttentionRestore"))]
    model = small_vit(plan=dense, out_indices=(4,), class_token=False)
    assert model(image((64, 64)))[0].shape == (2, 64, 8, 8)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_a_keep_that_carries_the_gradient(kind: str) -> None:
    if kind == "vit":
        trains(small_vit(plan=[dict(span=(2, None), reduce=dict(type=Gated))]), (64, 64))
        return
    step = dict(stage=2, span=(1, 2), reduce=dict(type=Gated))
    trains(small_swin(plan=[step], out_indices=(2, 3)), (128, 128))


def test_a_score_that_is_carried_through_maps() -> None:
    plan = [dict(span=(b, None), reduce=dict(type=Running)) for b in (1, 2)]
    model = small_vit(plan=plan).eval()
    _, trace = model.forward_tokens(image((64, 64)))
    assert [r.carry.shape for r in trace.steps] == [(2, 60, 1), (2, 56, 1)]
    trains(model, (64, 64))


def test_fewer_queries_than_keys() -> None:
    step = dict(span=(2, 2), reduce=dict(type=FewQueries), recover=dict(type="Scatter"))
    model = small_vit(plan=[step], out_indices=(3, 4))
    row = model.plan.preview(64)[2]
    assert (row.keys, row.queries, row.feed, row.out) == (64, 16, 16, 64)
    trains(model, (64, 64))
