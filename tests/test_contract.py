"""Every reducer x recovery x backbone; ``pytest --reducer module:Class`` runs a stranger's."""

import importlib
from typing import Any

import pytest
import torch
from mmengine.model import BaseModule
from small import image, small_swin, small_vit
from torch._dynamo.testing import CompileCounter

import tokensparse  # noqa: F401  registers everything
from tokensparse.registry import RECOVERIES, REDUCERS

#: Settings at which a reducer can be built on 8 x 8 tokens; what is not listed uses its defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "SparTa": dict(num_tokens=10),
    "Windowed": dict(window=4, reducer=dict(type="TopK", keep=5)),
}


def reducers(config: pytest.Config) -> list[Any]:
    """All registered reducers, or the one that ``--reducer`` names."""
    named = config.getoption("--reducer")
    if named is None:
        return sorted(REDUCERS.module_dict)
    module, _, name = named.partition(":")
    return [getattr(importlib.import_module(module), name)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "reducer" in metafunc.fixturenames:
        found = reducers(metafunc.config)
        metafunc.parametrize("reducer", found, ids=[getattr(r, "__name__", r) for r in found])
    if "recovery" in metafunc.fixturenames:
        metafunc.parametrize("recovery", sorted(RECOVERIES.module_dict))
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", ["vit", "swin"])


def build(kind: str, reducer: Any, recovery: str | None, dense: bool = True) -> BaseModule:
    name = reducer if isinstance(reducer, str) else reducer.__name__
    settings = {"type": reducer, **SETTINGS.get(name, {})}
    step: dict[str, Any] = dict(span=(1, 2), reduce=settings)
    if recovery is not None:
        step["recover"] = dict(type=recovery)
    if kind == "vit":
        return small_vit(plan=[step], out_indices=(2, 4) if dense else None)
    return small_swin(plan=[dict(stage=2, **step)], out_indices=(0, 1, 2, 3) if dense else None)


def sizes(kind: str) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((64, 64), (56, 72)) if kind == "vit" else ((128, 128), (100, 140))


def test_shapes_values_and_gradients(kind: str, reducer: Any, recovery: str) -> None:
    model = build(kind, reducer, recovery).train()
    for size in sizes(kind):
        model.zero_grad()
        maps = model(image(size))
        strides = (8, 8) if kind == "vit" else (4, 8, 16, 32)
        loss = torch.zeros(())
        for i, (out, stride) in enumerate(zip(maps, strides, strict=True)):
            assert out.shape[-2:] == tuple(-(-s // stride) for s in size)
            assert out.isfinite().all()
            weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(i))
            loss = loss + (out * weight).sum()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} got no gradient"
            assert parameter.grad.abs().max() > 0, f"{name}: gradient is zero everywhere"


def test_classification(kind: str, reducer: Any) -> None:
    model = build(kind, reducer, None, dense=False).eval()
    (features,) = model(image(sizes(kind)[0]))
    assert features.shape == (2, model.num_features)
    assert features.isfinite().all()


def test_compiled_is_eager(kind: str, reducer: Any, recovery: str) -> None:
    torch._dynamo.reset()
    model = build(kind, reducer, recovery).eval()
    x = image(sizes(kind)[0])
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for a, b in zip(model(x), compiled(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_inductor_is_eager(reducer: Any) -> None:
    torch._dynamo.reset()
    model = build("vit", reducer, "Scatter").eval()
    x = image((64, 64))
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        for a, b in zip(model(x), compiled(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_one_compile_for_each_size(kind: str, reducer: Any) -> None:
    """A size is compiled once, whatever came between; new images of it compile nothing."""
    torch._dynamo.reset()
    model = build(kind, reducer, "Scatter").eval()
    counter = CompileCounter()
    compiled, compiles = torch.compile(model, fullgraph=True, backend=counter, dynamic=False), []
    first, second = sizes(kind)
    with torch.no_grad():
        for size in (first, first, second, second, first, second):
            compiled(image(size))
            compiles.append(counter.frame_count)
    assert compiles == [1, 1, 2, 2, 2, 2]


def test_executed_operations_are_the_formula(kind: str, reducer: Any, recovery: str) -> None:
    from tokensparse.analysis import count

    model = build(kind, reducer, recovery).eval()
    for size in sizes(kind):
        assert count(model, size).macs > 0


def test_checkpointing_changes_nothing(kind: str, reducer: Any) -> None:
    model = build(kind, reducer, "AttentionRestore").train()
    x = image(sizes(kind)[0])
    grads = []
    for active in (False, True):
        model.with_cp = active
        model.zero_grad()
        torch.manual_seed(0)
        sum(out.square().mean() for out in model(x)).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_trace_tells_what_happened(kind: str, reducer: Any) -> None:
    model = build(kind, reducer, "Scatter").eval()
    _, trace = model.forward_tokens(image(sizes(kind)[0]), collect=frozenset({"maps", "attn"}))
    (record,) = trace.steps
    assert record.block == 1 and record.map is not None
    n = record.grid[0] * record.grid[1]
    assert record.map.down(torch.ones(2, n, 1)).shape[1] == record.size.shape[1]
    built = sum(len(stage.blocks) for stage in model.stages)
    assert len(trace.blocks) == built
    for block in trace.blocks:
        torch.testing.assert_close(block.attn.sum(-1), torch.ones(block.attn.shape[:-1]))
