"""Reduced models against dense ones, in turn in one process: images/s, latency, memory, efficiency.

Efficiency is the speed-up divided by the ratio of multiply-accumulates, dense to reduced: 1.0 means
that every operation saved became time.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor

from tokensparse.analysis.benchmark.gpus import peak_rate
from tokensparse.analysis.benchmark.models import BenchmarkError, Subject
from tokensparse.analysis.benchmark.shares import operations, step_shares
from tokensparse.analysis.timer import Samples, device_name, peak_bytes, sample

#: First field of a file, so that other tools know it.
SCHEMA = "tokensparse benchmark 1"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Below this share of timm's speed our dense model is no fair baseline.
LEAST_OF_TIMM = 0.97
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        batches: images per call.
        shape: (rows, columns) in pixels.
        dtypes: of :data:`DTYPES`. Inference casts the model, training runs under autocast.
        mode: ``infer``, or ``train``: forward, mean square of the outputs, backward.
        device: torch device.
        compile: mode of ``torch.compile``, or None.
        rounds: timed calls of each model.
        warmup: calls of each before.
        clock: ``wall``, ``cpu``, ``events``; ``auto``: events on a GPU, CPU time where torch has
            one thread, else wall clock.
        operations: also list operations by time.
    """

    batches: tuple[int, ...] = (1, 8, 32, 128)
    shape: tuple[int, int] = (224, 224)
    dtypes: tuple[str, ...] = ("fp32",)
    mode: str = "infer"
    device: str = "cpu"
    compile: str | None = None
    rounds: int = 20
    warmup: int = 3
    clock: str = "auto"
    operations: bool = False

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ValueError: naming the option, its value and what would be right.
        """
        for batch in self.batches:
            _refuse(batch < 1, "--batch", batch, "at least 1")
        for dtype in self.dtypes:
            _refuse(dtype not in DTYPES, "--dtype", dtype, f"one of {', '.join(DTYPES)}")
        _refuse(min(self.shape) < 1, "--shape", self.shape, "rows and columns in pixels")
        _refuse(self.mode not in ("infer", "train"), "--mode", self.mode, "infer or train")
        _refuse(self.rounds < 1, "--rounds", self.rounds, "at least 1")
        _refuse(self.warmup < 0, "--warmup", self.warmup, "at least 0")
        modes = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
        legal = ", ".join(m for m in modes if m)
        _refuse(self.compile not in modes, "--compile", self.compile, f"one of {legal}")
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            kind = "unknown"
        _refuse(kind not in ("cpu", "cuda"), "--device", self.device, "cpu, cuda or cuda:0")
        absent = kind == "cuda" and not torch.cuda.is_available()
        _refuse(absent, "--device", self.device, "cpu: this torch sees no GPU")
        clocks = ("auto", "wall", "cpu") if kind == "cpu" else ("auto", "wall", "events")
        _refuse(self.clock not in clocks, "--clock", self.clock, f"one of {', '.join(clocks)}")

    @property
    def clock_used(self) -> str:
        """The clock that ``auto`` stands for."""
        if self.clock != "auto":
            return self.clock
        if torch.device(self.device).type == "cuda":
            return "events"
        return "cpu" if torch.get_num_threads() == 1 else "wall"


def _refuse(wrong: bool, option: str, value: object, right: str) -> None:
    if wrong:
        raise ValueError(f"{option} {value}: expected {right}")


def benchmark(
    subjects: Sequence[Subject], settings: Settings, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure all subjects at every batch and dtype, strictly in turn.

    Args:
        subjects: on the CPU; every dense one before what is held against it. They are moved.
        settings: how.
        tell: is given one line per batch and dtype before it is measured.

    Returns:
        What the JSON file holds; ``failed`` is None, or the message of a failure after which only
        the rows before it are there.

    Raises:
        BenchmarkError: the first batch failed; the message names model, batch and dtype.
    """
    settings.check()
    device = torch.device(settings.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    rows: list[Row] = []
    failed = None
    for dtype in settings.dtypes:
        for batch in settings.batches:
            tell(f"batch {batch}, {dtype}: {len(subjects)} models, {settings.rounds} rounds")
            try:
                rows += _measure(subjects, settings, dtype, batch)
            except BenchmarkError as error:
                if not rows:
                    raise
                failed = str(error)
                break
        if failed:
            break
    return {**_head(settings), "failed": failed, "rows": rows}


def _head(settings: Settings) -> dict[str, Any]:
    return dict(
        schema=SCHEMA,
        device=device_name(settings.device),
        versions=versions(),
        threads=torch.get_num_threads(),
        mode=settings.mode,
        shape=list(settings.shape),
        compile=settings.compile,
        rounds=settings.rounds,
        warmup=settings.warmup,
        clock=settings.clock_used,
    )


def versions() -> dict[str, str]:
    """Of what decides the speed."""
    return dict(
        tokensparse=import_module("tokensparse").__version__,
        torch=torch.__version__,
        timm=timm.__version__,
        python=platform.python_version(),
    )


def _measure(subjects: Sequence[Subject], settings: Settings, dtype: str, batch: int) -> list[Row]:
    """One batch size and dtype: first calls apart, then rounds in turn, then memory."""
    images = random_images(batch, settings, dtype)
    if any(subject.compiled for subject in subjects):
        torch._dynamo.reset()  # every batch and dtype is compiled anew, and its time is known
    calls: dict[str, Callable[[], Any]] = {}
    compile_seconds: dict[str, float | None] = {}
    for subject in subjects:
        cold = inductor.patch(force_disable_caches=subject.compiled)  # no graph of a run before
        with _named(subject, settings, dtype, batch), cold:
            calls[subject.name] = _call_of(subject, settings, dtype, images)
            start = time.perf_counter()
            calls[subject.name]()
            _synchronize(settings.device)
            spent = time.perf_counter() - start
            compile_seconds[subject.name] = spent if subject.compiled else None
    samples = sample(calls, settings.rounds, settings.warmup, settings.device)
    rows = []
    for subject in subjects:
        with _named(subject, settings, dtype, batch):
            row = _row(subject, settings, dtype, batch, samples[subject.name])
            row["compile_s"] = compile_seconds[subject.name]
            row["peak_mem_bytes"] = peak_bytes(calls[subject.name], settings.device)
            if subject.kind == "config":
                row["shares"] = _shares(subject.model, settings, dtype, images)
            if settings.operations:
                found = operations(calls[subject.name], settings.device)
                row["operations_ms"] = dict(found.most_common(12))
        rows.append(row)
    compare_rows(rows, subjects, {n: s.of(settings.clock_used) for n, s in samples.items()})
    return rows


def random_images(batch: int, settings: Settings, dtype: str) -> Tensor:
    """(B, 3, rows, columns) of noise; never zeros, which some kernels and clocks are faster on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *settings.shape, generator=generator).to(settings.device)
    return images.to(DTYPES[dtype]) if settings.mode == "infer" else images


@contextmanager
def _named(subject: Subject, settings: Settings, dtype: str, batch: int) -> Iterator[None]:
    """Errors say which model, batch and dtype; compilers' long messages lose all but one line."""
    try:
        yield
    except Exception as error:  # a model of the user's own raises what it likes
        where = f"{subject.name}, batch {batch}, {dtype}, {settings.mode} on {settings.device}"
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        remedy = (
            "take a smaller --batch" if _is_memory(error) else "leave it out, or another --dtype"
        )
        raise BenchmarkError(f"{where}: {type(error).__name__}: {said} ({remedy})") from error


def _is_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or ("alloc" in text and "memory" in text)


def _call_of(subject: Subject, settings: Settings, dtype: str, images: Tensor) -> Callable[[], Any]:
    model: Any = subject.model.to(settings.device)
    backbone = getattr(model, "backbone", model)
    if settings.mode == "infer":
        model = model.to(DTYPES[dtype]).eval()
        prepare = getattr(backbone, "prepare", None)
        if subject.kind in ("config", "dense") and prepare is not None:
            prepare(settings.shape)
    else:
        model = model.float().train()
    if subject.compiled:
        mode = None if settings.compile == "default" else settings.compile
        model = torch.compile(model, mode=mode, dynamic=False)
    if settings.mode == "infer":

        def infer() -> Any:
            with torch.inference_mode():
                return model(images)

        return infer

    half = DTYPES[dtype] if dtype != "fp32" else None

    def train() -> None:
        with torch.autocast(images.device.type, half, enabled=half is not None):
            outs = model(images)
        sum(out.float().square().mean() for out in tensors_in(outs)).backward()
        subject.model.zero_grad(set_to_none=True)

    return train


def tensors_in(value: Any) -> list[Tensor]:
    """All floating tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def _shares(model: nn.Module, settings: Settings, dtype: str, images: Tensor) -> dict[str, float]:
    """Of a forward pass in eval mode; training models are brought back to training."""
    half = DTYPES[dtype] if settings.mode == "train" and dtype != "fp32" else None
    training = model.training
    try:
        return step_shares(model.eval(), images, autocast=half)
    finally:
        model.train(training)


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _row(subject: Subject, settings: Settings, dtype: str, batch: int, seconds: Samples) -> Row:
    """What one subject's own samples say."""
    p10, p50, p90, p95 = np.percentile(seconds.of(settings.clock_used), [10, 50, 90, 95]).tolist()
    device = device_name(settings.device)
    peak = peak_rate(device, dtype) if torch.device(settings.device).type == "cuda" else None
    rate = batch / p50
    mfu = None
    if peak and subject.macs:
        mfu = 2 * subject.macs * (3 if settings.mode == "train" else 1) * rate / peak
    return dict(
        name=subject.name,
        kind=subject.kind,
        config=subject.config,
        batch=batch,
        dtype=dtype,
        compiled=subject.compiled,
        img_s=rate,
        latency_ms=dict(p50=1e3 * p50, p95=1e3 * p95, p10=1e3 * p10, p90=1e3 * p90),
        wall_ms=1e3 * float(np.median(seconds.wall)),
        cpu_ms=1e3 * float(np.median(seconds.cpu)),
        macs=subject.macs,
        params=subject.params,
        tokens=list(subject.tokens),
        mfu=mfu,
        device=device,
        versions=versions(),
        note=subject.note,
    )


def compare_rows(
    rows: Sequence[Row], subjects: Sequence[Subject], seconds: Mapping[str, Sequence[float]]
) -> None:
    """Add speed-up, ratio of multiply-accumulates and efficiency to the rows of one batch.

    Args:
        rows: see :func:`benchmark`.
        subjects: in the same order.
        seconds: of every round, by name.
    """
    by_name = {row["name"]: row for row in rows}
    against = {
        subject.name: twin_ratio(subject, subjects, seconds)
        for subject in subjects
        if subject.kind == "dense"
    }
    for row, subject in zip(rows, subjects, strict=True):
        row["baseline"] = subject.baseline
        if subject.kind == "dense":
            row["against_timm"] = against[subject.name]
        base = by_name.get(subject.baseline or "")
        if base is None or base is row:
            continue
        rounds = np.asarray(seconds[base["name"]]) / np.asarray(seconds[subject.name])
        p10, median, p90 = np.percentile(rounds, [10, 50, 90]).tolist()
        row["speedup"] = median
        row["speedup_range"] = dict(p10=p10, p90=p90)
        row["peak_mem_ratio"] = _ratio(row["peak_mem_bytes"], base["peak_mem_bytes"])
        row["mac_ratio"] = _ratio(base["macs"], row["macs"])
        if subject.kind != "timm":
            row["efficiency"], row["void"] = _efficiency(row, against.get(base["name"]))


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _efficiency(row: Row, timm_ratio: Row | None) -> tuple[float | None, str | None]:
    if row["mac_ratio"] is None:
        return None, "no multiply-accumulates could be counted"
    if timm_ratio is not None and timm_ratio["valid"] is False:
        return None, timm_ratio["reason"]
    return row["speedup"] / row["mac_ratio"], None


def twin_ratio(
    dense: Subject, subjects: Sequence[Subject], seconds: Mapping[str, Sequence[float]]
) -> Row:
    """Our dense model's speed over timm's under the same compile setting.

    Args:
        dense: ours.
        subjects: of the run.
        seconds: of every round, by name.

    Returns:
        ``ratio``, ``valid`` (None where there is nothing to compare) and ``reason``.
    """
    for twin in subjects:
        same = twin.kind == "timm" and twin.baseline == dense.name
        if same and twin.compiled == dense.compiled:
            rounds = np.asarray(seconds[twin.name]) / np.asarray(seconds[dense.name])
            ratio = float(np.median(rounds))
            valid = bool(ratio >= LEAST_OF_TIMM)
            said = f"{dense.name} runs at {ratio:.3f} of timm's speed, below {LEAST_OF_TIMM}"
            return dict(ratio=ratio, valid=valid, reason=None if valid else said, timm=twin.note)
    return dict(ratio=None, valid=None, reason="no timm model of these sizes was run", timm=None)


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
