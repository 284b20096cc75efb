"""How a model is called while it is traced, and which sizes of its inputs may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compresskd.tasks import Inputs


def arguments(example: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and named arguments."""
    return ((example,), {}) if isinstance(example, Tensor) else ((), dict(example))


def dynamic_shapes(example: Inputs) -> Any:
    """The batch, and the number of tokens of whole numbers and masks [B, L], as torch.export takes them."""
    batch: Any = torch.export.Dim("batch")
    if isinstance(example, Tensor):
        return ({0: batch},)
    length: Any = torch.export.Dim("sequence")
    return {
        name: {0: batch, 1: length} if tensor.ndim == 2 and not tensor.is_floating_point() else {0: batch}
        for name, tensor in example.items()
    }
