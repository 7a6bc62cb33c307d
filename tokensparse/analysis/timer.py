"""A small A/B timer: callables in turn in one process, medians; and the peak memory of one call."""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one callable.

    Attributes:
        median: wall clock.
        p10: wall clock.
        p90: wall clock.
        cpu_median: process CPU time, all threads.
        cpu_p10: process CPU time.
        cpu_p90: process CPU time.
    """

    median: float
    p10: float
    p90: float
    cpu_median: float
    cpu_p10: float
    cpu_p90: float

    def ratio(self, other: "Timing") -> float:
        """How many times as long as ``other`` this one takes: medians of wall clock."""
        return self.median / other.median

    def cpu_ratio(self, other: "Timing") -> float:
        """The same of process CPU time."""
        return self.cpu_median / other.cpu_median


def device_name(device: str) -> str:
    """The processor's or the GPU's name, to stand beside measured figures."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True)
class Samples:
    """Seconds of every timed call of one callable, in the order of the rounds.

    Attributes:
        wall: wall clock, from an idle device to an idle device.
        cpu: process CPU time, all threads.
        events: between two events on the GPU's stream; empty elsewhere.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    events: tuple[float, ...] = ()

    def of(self, clock: str) -> tuple[float, ...]:
        """Seconds by ``clock``: ``wall``, ``cpu`` or ``events``.

        Raises:
            ValueError: a clock that did not run.
        """
        seconds = getattr(self, clock, ()) if clock in ("wall", "cpu", "events") else ()
        if not seconds:
            raise ValueError(f"clock={clock!r} did not run; legal: wall, cpu, on a GPU events")
        return tuple(seconds)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sample(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int = 10,
    warmup: int = 2,
    device: str | torch.device = "cpu",
) -> dict[str, Samples]:
    """Time callables strictly in turn: A B A B ...

    Args:
        calls: callables by name.
        rounds: timed calls of each.
        warmup: calls of each before.
        device: where they work; on CUDA events are recorded around every call.

    Returns:
        All seconds by name. Round i of one stands beside round i of the others.
    """
    device = torch.device(device)
    for _ in range(warmup):
        for call in calls.values():
            call()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _synchronize()
            if device.type == "cuda":
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                stream = torch.cuda.current_stream(device)
                pairs[name].append((first, last))
                first.record(stream)
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            if device.type == "cuda":
                last.record(stream)
            _synchronize()
            found[name].append((time.perf_counter() - start, time.process_time() - start_cpu))
    return {
        name: Samples(
            tuple(wall for wall, _ in found[name]),
            tuple(cpu for _, cpu in found[name]),
            tuple(first.elapsed_time(last) / 1e3 for first, last in pairs[name]),
        )
        for name in calls
    }


def compare(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 10, warmup: int = 2
) -> dict[str, Timing]:
    """Time callables strictly in turn: A B A B ...

    Args:
        calls: callables by name.
        rounds: timed calls of each.
        warmup: calls of each before.

    Returns:
        Timings by name. Compare medians of one run; noise of other processes hits all alike.
    """
    result = {}
    for name, seconds in sample(calls, rounds, warmup).items():
        p10, median, p90 = np.percentile(seconds.wall, [10, 50, 90]).tolist()
        cpu_p10, cpu_median, cpu_p90 = np.percentile(seconds.cpu, [10, 50, 90]).tolist()
        result[name] = Timing(median, p10, p90, cpu_median, cpu_p10, cpu_p90)
    return result


def peak_bytes(call: Callable[[], Any], device: str | None = None) -> int:
    """Most bytes of tensors that one call holds at once, beyond what was there before.

    On a GPU it is the caching allocator's peak. On a CPU the allocator's events are read off the
    profiler and added up in order, which is exact for tensors and leaves out what kernels take from
    elsewhere. Memory of the other device does not count.

    Args:
        call: what to run once.
        device: ``cuda`` or ``cpu``, where ``call`` works; None takes CUDA where there is one.

    Returns:
        Bytes.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        call()
    events = [
        event
        for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
