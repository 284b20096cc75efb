"""How one tensor of the compact form is stored, as a small number (or a short list where it is out of the ordinary).

0 to 9 are plain types; 16 + 4 g + s is a grid g with scales s: per tensor, per channel (dim 0), per slice of the
last or of the first TT-rank. A list [16 + 4 g, name, option] spells out any other granularity. These numbers are
part of the format: new ones may be added, none may change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compresskd.artifact.errors import ArtifactError
from compresskd.quant.granularity import (
    Granularity,
    PerChannel,
    PerRankSlice,
    PerTensor,
    granularity_from_plain,
)
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor

FLOAT32, INT64 = 0, 4
_TYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
_FIRST = 16
_BITS = (2, 3, 4, 8)
_KINDS = ("symmetric", "affine", "half_integer", "ternary")
_SCALES: tuple[Granularity, ...] = (PerTensor(), PerChannel(0), PerRankSlice("last"), PerRankSlice("first"))

Description = torch.dtype | tuple[Grid, Granularity]


def describe(tensor: Tensor | QuantizedTensor) -> Any:
    """The number, or the list, of how this tensor is stored. Raises ValueError for a type without one."""
    if isinstance(tensor, Tensor):
        if tensor.dtype not in _TYPES:
            raise ValueError(f"the compact form has no number for {tensor.dtype}; convert the tensor first")
        return _TYPES.index(tensor.dtype)
    grid, granularity = tensor.grid, tensor.granularity
    number = _FIRST + 4 * (4 * _BITS.index(grid.bits) + _KINDS.index(grid.kind))
    if granularity in _SCALES:
        return number + _SCALES.index(granularity)
    return [number, *granularity.plain()]


def understand(code: Any) -> Description:
    """What a number or list means. Raises ArtifactError, or ValueError, where it means nothing."""
    number, plain = (code[0], code[1:]) if isinstance(code, list) and code else (code, None)
    if type(number) is int and plain is None and 0 <= number < len(_TYPES):
        return _TYPES[number]
    if type(number) is not int or not _FIRST <= number < _FIRST + 64:
        raise ArtifactError(f"expected the number of a way to store a tensor, got {code!r:.80}")
    which, scales = divmod(number - _FIRST, 4)
    granularity = _SCALES[scales] if plain is None else granularity_from_plain(plain)
    return Grid(_BITS[which // 4], _KINDS[which % 4]), granularity
