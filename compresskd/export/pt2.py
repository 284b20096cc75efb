"""The form of torch.export: one file that PyTorch alone runs, without this package. Quantized tensors are floats."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import nn

from compresskd.export.agreement import Run
from compresskd.export.shapes import arguments, dynamic_shapes
from compresskd.tasks import Inputs, call, logits_of


def write(model: nn.Module, example: Inputs, path: Path) -> None:
    """Write the model, in evaluation mode, with a dynamic first dimension, and second of tokens.

    `example` holds 2 samples or more.
    """
    buffer = io.BytesIO()  # a file must end in .pt2, a temporary one does not
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        args, kwargs = arguments(example)
        program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes(example))
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def read(path: Path) -> Run:
    """The file as something that maps inputs to outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda inputs: logits_of(call(module, inputs))
