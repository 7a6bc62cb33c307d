"""Where a reduced model's time goes: reducers, recoveries and their hints; operations."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tokensparse.blocks.attention import SetAttention


class Stopwatch:
    """Adds up the time of named parts of a forward pass, outermost part only.

    Args:
        device: where the model runs; on CUDA events are recorded, and read by :meth:`seconds`.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.marks: list[tuple[str, Any, Any]] = []
        self.inside = 0

    def now(self) -> Any:
        """Process CPU time in seconds, or an event."""
        if not self.cuda:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream())
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs inside; parts within parts count as the outer one."""
        self.inside += 1
        start = self.now() if self.inside == 1 else None
        try:
            yield
        finally:
            self.inside -= 1
            if self.inside == 0:
                self.marks.append((name, start, self.now()))

    def seconds(self) -> Counter[str]:
        """Seconds by part."""
        if self.cuda:
            torch.cuda.synchronize()
        found: Counter[str] = Counter()
        for name, start, end in self.marks:
            found[name] += start.elapsed_time(end) / 1e3 if self.cuda else end - start
        return found


def parts_of(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Modules that only a plan needs, by what they are.

    Args:
        model: a classifier or a backbone of ours.

    Returns:
        ``reduce EViT``, ``recover Scatter``, ``hints`` ... -> (module, name of its method).
    """
    plan: Any = getattr(getattr(model, "backbone", model), "plan", None)
    if plan is None:
        return {}
    found: dict[str, list[tuple[nn.Module, str]]] = {}
    for step in plan.steps:
        found.setdefault(f"reduce {step.name}", []).append((step.reduce, "forward"))
        if step.recover is not None:
            name = f"recover {type(step.recover).__name__}"
            found.setdefault(name, []).append((step.recover, "forward"))
    if plan.steps and isinstance(plan.restore, nn.Module):
        name = f"restore {type(plan.restore).__name__}"
        found.setdefault(name, []).append((plan.restore, "forward"))
    backbone: Any = getattr(model, "backbone", model)
    for index, stage in enumerate(backbone.stages):
        for name, block in stage.blocks.items():
            attn = getattr(block, "attn", None)
            if isinstance(attn, SetAttention) and plan.needs(index, int(name)):
                found.setdefault("hints", []).append((attn, "_info"))
    return found


@contextmanager
def _timed(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Time every part while this runs; the model is as before afterwards."""
    wrapped: list[tuple[nn.Module, str]] = []

    def wrap(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with watch.part(name):
                return function(*args, **kwargs)

        return timed

    try:
        for name, places in parts_of(model).items():
            for module, method in places:
                module.__dict__[method] = wrap(getattr(module, method), name)
                wrapped.append((module, method))
        yield
    finally:
        for module, method in wrapped:
            del module.__dict__[method]


def step_shares(
    model: nn.Module, images: Tensor, rounds: int = 3, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """Share of a forward pass that reducers, recoveries and their hints take, without compiler.

    ``hints`` are keys and scores that a block hands to a reducer; the log-size bias of
    proportional attention and tensors made anew around a step belong to no part.

    Args:
        model: a classifier or a backbone of ours, in eval mode.
        images: (B, 3, rows, columns), on the model's device.
        rounds: forward passes; the medians of the shares are taken.
        autocast: dtype of autocast, or None.

    Returns:
        Share by part, 0..1, process CPU time or events; and ``all``. Empty without a plan.
    """
    if not parts_of(model):
        return {}
    found: list[dict[str, float]] = []
    device = images.device
    for _ in range(rounds + 1):
        whole, watch = Stopwatch(device), Stopwatch(device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, autocast, enabled=autocast is not None),
            _timed(model, watch),
            whole.part("whole"),
        ):
            model(images)
        total = whole.seconds()["whole"]
        found.append({name: value / total for name, value in watch.seconds().items()})
    names = list(dict.fromkeys(name for shares in found for name in shares))
    middle = [sorted(shares.get(name, 0.0) for shares in found[1:]) for name in names]
    shares = {name: v[len(v) // 2] for name, v in zip(names, middle, strict=True)}
    return {**shares, "all": sum(shares.values())}


def operations(
    call: Callable[[], Any], device: str | torch.device, rounds: int = 3
) -> Counter[str]:
    """Milliseconds of one call by operation, off torch's profiler.

    Args:
        call: what to run.
        device: CUDA counts kernels by the operation that launched them.
        rounds: calls to average over.

    Returns:
        Own time by operation, without what it calls; operations of torch alone.
    """
    on_gpu = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    call()
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(rounds):
            call()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            found[event.key.removeprefix("aten::")] += getattr(event, field) / rounds / 1e3
    return found
