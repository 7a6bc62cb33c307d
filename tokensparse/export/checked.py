"""A file is written aside, run beside eager, and only then put where it was asked for.

Shapes: B images of ``channels`` x H x W pixels, normalised; H and W are fixed in the file, because
token counts are.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from tokensparse.export.onnx_file import Run, check_packages, output_names, reason, write_onnx
from tokensparse.export.part import ExportError

Format = Literal["onnx", "torch"]
Batch = int | Literal["dynamic"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
#: Largest difference to eager, of an output whose largest value is at least 1; else its share.
TOLERANCE = 1e-3
#: Batches that a file of dynamic batch is checked at; it is traced at another one.
CHECKED, TRACED = (1, 3), 2
#: Operators of aten that add up where indices meet.
REDUCING = ("scatter_add", "scatter_reduce", "index_add", "index_reduce")


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the file.
        size: bytes, external data included.
        inputs: name -> shape of the images; the batch is a string where it is dynamic.
        outputs: name -> shape.
        runtime: what the file was checked with.
        batches: batch sizes it was checked at.
        difference: the largest absolute difference to eager.
    """

    path: Path
    size: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    runtime: str
    batches: tuple[int, ...]
    difference: float


def export_model(
    model: nn.Module,
    out: str | Path,
    size: tuple[int, int],
    batch: Batch = "dynamic",
    format: Format | None = None,  # noqa: A002
    about: Mapping[str, str] | None = None,
) -> Exported:
    """Export, run the file beside eager, and only then put it where it was asked for.

    Args:
        model: takes (B, channels, H, W), gives a tensor or a tuple of tensors; in eval mode, on
            the CPU.
        out: file to write; one that is there is replaced when all is well, and stays otherwise.
        size: (H, W) in pixels.
        batch: ``dynamic``, or the one batch size that the file shall take.
        format: ``onnx`` or ``torch`` (.pt2); default: by the suffix of ``out``.
        about: metadata of the file, strings by name.

    Returns:
        What was written, and how far it is from eager.

    Raises:
        ExportError: the format, the tracing, the graph or the outputs are not as they should be.
        ImportError: ONNX asked for without its packages.
        OSError: the file cannot be written.
    """
    out = Path(out)
    kind = format_of(out, format)
    if batch != "dynamic" and batch < 1:
        raise ExportError(f"batch={batch}; expected 'dynamic' or an int >= 1")
    if kind == "onnx":
        check_packages()
    about = {**(about or {}), "shape": json.dumps(list(size)), "torch": torch.__version__}
    channels = next((p.shape[1] for p in model.parameters() if p.ndim == 4), 3)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        torch.no_grad(),
        tempfile.TemporaryDirectory(
            prefix=f"{out.name}.", suffix=".partial", dir=out.parent
        ) as folder,
    ):
        partial = Path(folder, out.name)
        program = _program(model, torch.randn(_traced(batch), channels, *size), batch)
        if kind == "onnx":
            run, runtime = write_onnx(program, partial, about)
        else:
            run, runtime = _write_program(program, partial, about)
        batches = CHECKED if batch == "dynamic" else (batch, batch)
        difference, outputs = _check(model, run, (channels, *size), batches, runtime)
        del run
        files = sorted(Path(folder).iterdir(), key=lambda p: p.name == out.name)
        written = sum(p.stat().st_size for p in files)
        for path in files:  # external data first: the file itself is complete when it appears
            os.replace(path, out.parent / path.name)
    first: int | str = "batch" if batch == "dynamic" else batch
    shapes = {name: (first, *shape[1:]) for name, shape in outputs.items()}
    given = {"image": (first, channels, *size)}
    return Exported(out, written, given, shapes, runtime, batches, difference)


def format_of(out: Path, given: str | None) -> Format:
    """The format of a file; its suffix and what was asked for must agree."""
    if given is not None and given not in SUFFIXES:
        raise ExportError(f"format={given!r}; legal: {sorted(SUFFIXES)}")
    found = [name for name, suffix in SUFFIXES.items() if suffix == out.suffix]
    if not found or given not in (None, found[0]):
        asked = sorted(SUFFIXES) if given is None else [given]
        names = " or ".join(f"{out.stem}{SUFFIXES[name]}" for name in asked)  # type: ignore[index]
        raise ExportError(f"{out}: format {' or '.join(asked)} is written to {names}")
    return found[0]


def _traced(batch: Batch) -> int:
    return TRACED if batch == "dynamic" else batch


def _program(model: nn.Module, img: Tensor, batch: Batch) -> ExportedProgram:
    """Trace; no operator may add where indices meet."""
    shapes = ({0: Dim("batch", min=1)},) if batch == "dynamic" else None
    try:
        program = torch.export.export(model, (img,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        remedy = ""
        if batch == "dynamic" and "batch" in str(error):
            remedy = "; a fixed batch may do, such as --batch 1"
        raise ExportError(f"{type(model).__name__} was not traced: {reason(error)}{remedy}") from (
            error
        )
    for node in program.graph.nodes:
        if _reduces(node):
            raise ExportError(
                f"{node.target} adds up where indices meet, which runtimes refuse{_line(node)}; "
                "use tokensparse.tokens.scatter_sum there"
            )
    return program


def _reduces(node: Node) -> bool:
    if node.op != "call_function" or not str(node.target).startswith("aten."):
        return False
    name, overload = str(node.target).split(".")[1:3]
    name = name.rstrip("_")
    if name == "index_put":
        return bool(node.kwargs.get("accumulate", node.args[3:4] == (True,)))
    return name in REDUCING or (name == "scatter" and "reduce" in overload)


def _line(node: Node) -> str:
    """`` (file, line N)`` of the innermost source line, where the tracer kept it."""
    places = [p for p in (node.stack_trace or "").splitlines() if p.lstrip().startswith("File")]
    return f" ({places[-1].strip()})" if places else ""


def _write_program(
    program: ExportedProgram, path: Path, about: Mapping[str, str]
) -> tuple[Run, str]:
    torch.export.save(program, path, extra_files={"about.json": json.dumps(dict(about))})
    module = torch.export.load(path).module()

    def run(img: Tensor) -> Sequence[Tensor]:
        return _as_tuple(module(img))

    return run, f"torch {torch.__version__}"


def _as_tuple(outs: Any) -> tuple[Tensor, ...]:
    return (outs,) if isinstance(outs, Tensor) else tuple(outs)


def _check(
    model: nn.Module, run: Run, image: tuple[int, ...], batches: Sequence[int], runtime: str
) -> tuple[float, dict[str, tuple[int, ...]]]:
    """Compare with eager on noise; the largest difference, and the outputs' shapes by name."""
    worst, shapes = 0.0, {}
    for seed, batch in enumerate(batches):
        img = torch.randn(batch, *image, generator=torch.Generator().manual_seed(seed))
        wanted, found = _as_tuple(model(img)), run(img)
        names = output_names(len(wanted), wanted[0].shape)
        for name, a, b in zip(names, wanted, found, strict=True):
            if a.shape != b.shape:
                raise ExportError(
                    f"{name}: {runtime} gives {tuple(b.shape)} at batch {batch}, eager "
                    f"{tuple(a.shape)}"
                )
            scale, gap = a.abs().max().item(), (a - b).abs().max().item()
            if not gap <= TOLERANCE * min(1.0, scale):
                raise ExportError(
                    f"{name}: {runtime} differs from eager by {gap:.3g} at batch {batch} (largest "
                    f"value {scale:.3g}, allowed {TOLERANCE * min(1.0, scale):.3g}); is something "
                    "random, or decided by values that tie?"
                )
            worst, shapes[name] = max(worst, gap), tuple(a.shape)
    return worst, shapes
