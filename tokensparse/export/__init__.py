"""Export: a classifier or backbone as ONNX or as a program of torch.export, checked, then kept."""

from tokensparse.export.checked import Exported, export_model, format_of
from tokensparse.export.onnx_file import check_graph
from tokensparse.export.part import Deployable, ExportError, deployable, load_weights

__all__ = [
    "Deployable",
    "ExportError",
    "Exported",
    "check_graph",
    "deployable",
    "export_model",
    "format_of",
    "load_weights",
]
