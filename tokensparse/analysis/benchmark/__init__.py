"""Models under the clock, in turn in one process, and the page of tables that is made of it.

``models`` lines them up, ``measure`` runs them; ``page``, with ``targets`` and ``plain``, writes
docs/benchmarks.md.
"""

from tokensparse.analysis.benchmark.measure import SCHEMA, Settings, benchmark, write_json
from tokensparse.analysis.benchmark.models import BenchmarkError, Subject, line_up

__all__ = [
    "SCHEMA",
    "BenchmarkError",
    "Settings",
    "Subject",
    "benchmark",
    "line_up",
    "write_json",
]
