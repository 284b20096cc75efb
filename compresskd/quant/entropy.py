"""Entropy coding of quantized tensors.

`encode` writes the integers of several tensors into one stream of bytes, `decode` reads them back exactly.
The stream is: for every tensor one byte naming the model of its frequencies and the model's parameters
(`frequencies`), then the integers of all tensors, coded by one range-ANS coder (Duda 2013, arXiv:1311.2540)
of `constriction`. A tensor that coding cannot shrink is packed behind a byte 0 instead. Nothing else is
stored: the reader knows shapes and grids.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compresskd.quant.frequencies import Frequencies, best_frequencies, parameter_bytes, read_frequencies
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, pack, unpack

_PACKED = 0  # in place of a model
_WORD_BYTES = 4  # of the coder


def encode(tensors: Sequence[QuantizedTensor]) -> bytes:
    """The integers of all tensors as one stream.

    Raises:
        ImportError: `constriction` is not installed.
    """
    coder = _constriction().stream.stack.AnsCoder()
    heads, coded = [], []
    for tensor in tensors:
        codes = _codes(tensor)
        counts = np.bincount(codes, minlength=tensor.grid.num_levels).astype(np.int64)
        best = best_frequencies(counts)
        if best.num_bytes(counts) >= 1 + tensor.grid.packed_bytes(len(codes)):
            heads.append(bytes([_PACKED]) + pack(tensor.integers, tensor.grid))
        else:
            heads.append(bytes([best.model]) + best.parameters)
            coded.append((codes, best))
    for codes, frequencies in reversed(coded):  # a stack: the first tensor must come out first
        coder.encode_reverse(codes, _categorical(frequencies))
    return b"".join(heads) + coder.get_compressed().astype("<u4").tobytes()


def decode(data: bytes, shapes: Sequence[Sequence[int]], grids: Sequence[Grid]) -> list[Tensor]:
    """The integers (int8) that `encode` wrote, in these shapes and on these grids.

    Raises:
        ValueError: the stream is cut short, has bytes left over, or names a model that does not exist.
        ImportError: `constriction` is not installed.
    """
    position, models = 0, []
    for shape, grid in zip(shapes, grids, strict=True):
        model, position = _read_model(data, position, prod(shape), grid)
        models.append(model)
    words = data[position:]
    if len(words) % _WORD_BYTES:
        raise ValueError(
            f"entropy-coded integers: {len(words)} bytes are no whole number of words of {_WORD_BYTES}"
        )
    coder = _constriction().stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    result = []
    for shape, grid, model in zip(shapes, grids, models, strict=True):
        if isinstance(model, Tensor):
            integers = model
        else:
            codes = coder.decode(_categorical(model), prod(shape))
            integers = torch.from_numpy((codes + grid.low).astype(np.int8))
        result.append(integers.reshape(tuple(shape)))
    if not coder.is_empty():
        raise ValueError(
            "entropy-coded integers: the stream does not end where its tensors do; it is damaged"
        )
    return result


def entropy_bits(integers: Tensor) -> float:
    """Empirical entropy of the integers, in bits for all of them together."""
    counts = torch.unique(integers, return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def _read_model(data: bytes, position: int, count: int, grid: Grid) -> tuple[Frequencies | Tensor, int]:
    """The model at this position, or the integers themselves where they are packed; and the position after it."""
    if position >= len(data):
        raise ValueError(
            f"entropy-coded integers: the stream ends after {len(data)} bytes, before its tensors do"
        )
    packed = data[position] == _PACKED
    try:
        size = grid.packed_bytes(count) if packed else parameter_bytes(data[position], grid.num_levels)
    except ValueError as error:
        raise ValueError(f"entropy-coded integers: byte {position} is damaged: {error}") from error
    end = position + 1 + size
    parameters = data[position + 1 : end]
    if len(parameters) != size:
        raise ValueError(f"entropy-coded integers: expected {end} bytes at least, got {len(data)}")
    if packed:
        return unpack(parameters, count, grid), end
    return read_frequencies(data[position], parameters, grid.num_levels), end


def _codes(tensor: QuantizedTensor) -> NDArray[np.int32]:
    return (tensor.integers.cpu().reshape(-1).to(torch.int32) - tensor.grid.low).numpy()


def _categorical(frequencies: Frequencies) -> Any:
    return _constriction().stream.model.Categorical(frequencies.probabilities, perfect=False)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "entropy coding needs the package constriction: pip install constriction, or store packed integers"
        ) from error
    return constriction
