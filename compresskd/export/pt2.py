"""The form of torch.export: one file that PyTorch alone runs, without this package. Quantized tensors are floats."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.export.agreement import Run


def write(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write the model, in evaluation mode, with a dynamic first dimension. `example` [B, ...] with B of 2 or more."""
    buffer = io.BytesIO()  # a file must end in .pt2, a temporary one does not
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        batch: Any = torch.export.Dim("batch")
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def read(path: Path) -> Run:
    """The file as something that maps inputs [B, ...] to outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(path.read_bytes())).module()
