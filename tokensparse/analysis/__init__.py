"""Counting and timing that can be trusted: parameters, multiply-accumulates, tokens, A/B times."""

from tokensparse.analysis.count import BlockRow, Count, CountError, ModuleRow, StepRow, count
from tokensparse.analysis.timer import Timing, compare, device_name, peak_bytes

__all__ = [
    "BlockRow",
    "Count",
    "CountError",
    "ModuleRow",
    "StepRow",
    "Timing",
    "compare",
    "count",
    "device_name",
    "peak_bytes",
]
