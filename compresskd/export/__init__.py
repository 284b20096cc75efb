"""Finished models in the forms that other programs run: ONNX, torch.export, or ordinary dense layers.

Every form is read again after it was written, and its outputs are compared with the model's own.
"""

from compresskd.export.errors import ExportError, ExportFailed
from compresskd.export.export import FORMS, export
from compresskd.export.source import Source, open_source

__all__ = ["FORMS", "ExportError", "ExportFailed", "Source", "export", "open_source"]
