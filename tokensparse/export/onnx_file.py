"""ONNX: the graph of a traced program, checked, named and written."""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokensparse.export.part import ExportError

Run = Callable[[Tensor], Sequence[Tensor]]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: Bytes of weights that go into the ONNX file itself; a protobuf ends at 2 GiB, the graph needs
#: room.
ONE_FILE = 2**31 - 2**26


def check_packages() -> None:
    """Raise ImportError, naming what to install, where a package of ONNX is absent."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        raise ImportError(
            f"ONNX needs {', '.join(absent)}: pip install {' '.join(PACKAGES)} (or "
            "'tokensparse[export]'); a .pt2 file needs none of them"
        )


def reason(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def write_onnx(program: ExportedProgram, path: Path, about: Mapping[str, str]) -> tuple[Run, str]:
    """Translate, check and write.

    Args:
        program: of one input; its batch is dynamic or fixed.
        path: file to write; weights beyond ``ONE_FILE`` go to ``path`` + ``.data`` beside it.
        about: metadata, strings by name.

    Returns:
        A function that runs the file, and what runs it.

    Raises:
        ExportError: an operator without a translation, or a graph that :func:`check_graph` refuses.
    """
    import onnx
    import onnxruntime

    try:
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, custom_translation_table=_translations()
        )
    except Exception as error:
        raise ExportError(f"no ONNX graph: {reason(error)}") from error
    assert exported is not None
    graph = exported.model
    check_graph(graph)
    _tidy(graph, about)
    weights = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value)
    exported.save(path, external_data=weights > ONE_FILE)
    onnx.checker.check_model(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(img: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(a) for a in session.run(None, {"image": img.numpy()})]

    return run, f"onnxruntime {onnxruntime.__version__}"


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Sorts as TopK of the whole, constant axis.

    ONNX gives the lower index first where values tie, so TopK is a stable sort; the exporter knows
    none, and computes the length of the axis at run time.
    """
    from onnxscript import opset18

    def sort(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
        length = x.shape[dim]
        if not isinstance(length, int):
            raise ExportError(f"a sort over an axis of {length} values, which is no fixed count")
        k = opset18.Constant(value_ints=[length])
        return opset18.TopK(x, k, axis=dim, largest=int(descending), sorted=1)

    aten = torch.ops.aten.sort
    return {aten.default: sort, aten.stable: sort}


def check_graph(model: Any) -> None:
    """Refuse what runtimes cannot run fast, or at all.

    Args:
        model: an ``onnx_ir.Model``.

    Raises:
        ExportError: a scatter with a reduction, or a TopK whose k is computed, naming the node.
    """
    from onnx_ir.traversal import RecursiveGraphIterator

    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        for node in RecursiveGraphIterator(graph):
            given = node.attributes.get("reduction")
            if node.op_type.startswith("Scatter") and given and given.value != "none":
                raise ExportError(f"{node.name}: {node.op_type} with reduction={given.value!r}")
            if node.op_type != "TopK":
                continue
            k = node.inputs[1]
            maker = None if k is None else k.producer()
            if (k is None or k.const_value is None) and getattr(maker, "op_type", "") != "Constant":
                raise ExportError(f"{node.name}: TopK whose k is computed; token counts are fixed")


def _tidy(model: Any, about: Mapping[str, str]) -> None:
    """Names that say what they are, and no source paths in the file."""
    from onnx_ir.traversal import RecursiveGraphIterator

    graph = model.graph
    batch = getattr(graph.inputs[0].shape[0], "value", None)
    for node in RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            _rename_batch(value, batch)
    _rename_batch(graph.inputs[0], batch)
    graph.inputs[0].name = "image"
    names = output_names(len(graph.outputs), graph.outputs[0].shape)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name
    graph.name = "tokensparse"
    model.metadata_props.update(about)


def _rename_batch(value: Any, symbol: str | None) -> None:
    """``batch`` for the tracer's own name, alone or in an expression such as ``4*s45``."""
    if symbol is None or value.shape is None:
        return
    from onnx_ir import Shape

    sides = [side if isinstance(side, int) else side.value for side in value.shape]
    pattern = rf"\b{symbol}\b"
    named = [re.sub(pattern, "batch", s) if isinstance(s, str) else s for s in sides]
    if named != sides:
        value.shape = Shape(named)


def output_names(count: int, shape: Sequence[Any]) -> list[str]:
    """``logits`` for one (B, K), else ``map0``, ``map1``, ..."""
    if count == 1 and len(shape) == 2:
        return ["logits"]
    return [f"map{i}" for i in range(count)]
