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


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
    for _ in range(warmup):
        for call in calls.values():
            call()
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _synchronize()
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            _synchronize()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    result = {}
    for name in calls:
        p10, median, p90 = np.percentile(wall[name], [10, 50, 90]).tolist()
        cpu_p10, cpu_median, cpu_p90 = np.percentile(cpu[name], [10, 50, 90]).tolist()
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
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
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
