"""Entropy coding of quantized tensors.

`encode` writes the integers of several tensors into one stream of bytes, `decode` reads them back exactly.
The stream is: for every tensor one byte naming the model of its frequencies and the model's parameters
(`frequencies`), then the integers of all tensors, coded by one range-ANS coder (Duda 2013, arXiv:1311.2540)
of `constriction`, without the zero bytes at the end of its last word. A byte 5 stands for the model of the last
coded tensor with as many levels. A tensor that coding cannot shrink is packed behind a byte 0 instead. Nothing
else is stored: the reader knows shapes and grids.
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

_PACKED, _AS_BEFORE = 0, 5  # in place of a model
_WORD_BYTES = 4  # of the coder


def encode(tensors: Sequence[QuantizedTensor]) -> bytes:
    """The integers of all tensors as one stream.

    Raises:
        ImportError: `constriction` is not installed.
    """
    coder = _constriction().stream.stack.AnsCoder()
    heads: list[bytes] = []
    coded: list[tuple[NDArray[np.int32], Frequencies]] = []
    before: dict[int, Frequencies] = {}  # by number of levels
    for tensor in tensors:
        codes = _codes(tensor)
        head, frequencies = _shortest(tensor, codes, before.get(tensor.grid.num_levels))
        heads.append(head)
        if frequencies is not None:
            coded.append((codes, frequencies))
            before[tensor.grid.num_levels] = frequencies
    for codes, frequencies in reversed(coded):  # a stack: the first tensor must come out first
        coder.encode_reverse(codes, _categorical(frequencies))
    return b"".join(heads) + coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def _shortest(
    tensor: QuantizedTensor, codes: NDArray[np.int32], before: Frequencies | None
) -> tuple[bytes, Frequencies | None]:
    """The head of a tensor, and the model of its integers where they are coded and not in the head."""
    counts = np.bincount(codes, minlength=tensor.grid.num_levels).astype(np.int64)
    best = best_frequencies(counts)
    head, size = bytes([best.model]) + best.parameters, best.num_bytes(counts)
    if before is not None and before.num_bytes(counts) - len(before.parameters) <= size:
        best, head, size = before, bytes([_AS_BEFORE]), before.num_bytes(counts) - len(before.parameters)
    if size >= 1 + tensor.grid.packed_bytes(len(codes)):
        return bytes([_PACKED]) + pack(tensor.integers, tensor.grid), None
    return head, best


def decode(data: bytes, shapes: Sequence[Sequence[int]], grids: Sequence[Grid]) -> list[Tensor]:
    """The integers (int8) that `encode` wrote, in these shapes and on these grids.

    Raises:
        ValueError: the stream is cut short, has bytes left over, or names a model that does not exist.
        ImportError: `constriction` is not installed.
    """
    position, models = 0, []
    before: dict[int, Frequencies] = {}
    for shape, grid in zip(shapes, grids, strict=True):
        model, position = _read_model(data, position, prod(shape), grid, before.get(grid.num_levels))
        models.append(model)
        if isinstance(model, Frequencies):
            before[grid.num_levels] = model
    words = data[position:]
    if words.endswith(b"\0"):
        raise ValueError("entropy-coded integers: the stream ends in a zero byte, which no stream does")
    words += bytes(-len(words) % _WORD_BYTES)
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


def _read_model(
    data: bytes, position: int, count: int, grid: Grid, before: Frequencies | None
) -> tuple[Frequencies | Tensor, int]:
    """The model at this position, or the integers themselves where they are packed; and the position after it."""
    if position >= len(data):
        raise ValueError(
            f"entropy-coded integers: the stream ends after {len(data)} bytes, before its tensors do"
        )
    if data[position] == _AS_BEFORE:
        if before is None:
            raise ValueError(
                f"entropy-coded integers: byte {position} is damaged: there is no model before it"
            )
        return before, position + 1
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
