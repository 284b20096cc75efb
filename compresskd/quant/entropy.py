"""Entropy coding of quantized tensors.

`encode` writes the integers of several tensors into one stream of bytes, `decode` reads them back exactly.
Tensors with equally many levels come one after the other, and are divided into runs that share a model of their
frequencies (`frequencies`). The stream is: for every run one byte, the number of the model and 8 times how many
tensors beyond the first it has, and the model's parameters; then the integers of all tensors, coded by one
range-ANS coder (Duda 2013, arXiv:1311.2540) of `constriction`, without the zero bytes at the end of its last word.
A run that coding cannot shrink has the model 0 and its integers packed behind it. Nothing else is stored: the
reader knows shapes and grids.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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
_LONGEST = 32  # run, in tensors: what one byte holds beside the model
_WORD_BYTES = 4  # of the coder
_COUNTED_TOGETHER = 2**20
_last: dict[bytes, bytes] = {}


def encode(tensors: Sequence[QuantizedTensor]) -> bytes:
    """The integers of all tensors as one stream.

    The last stream is kept: a run measures a model first and then writes the same one, read from its checkpoint.

    Raises:
        ImportError: `constriction` is not installed.
    """
    key = _key(tensors)
    if key not in _last:
        _last.clear()
        _last[key] = _encoded(tensors)
    return _last[key]


def saved_by_coding(tensors: Sequence[QuantizedTensor]) -> int:
    """Bytes by which these tensors, coded by themselves, are smaller than packed; 0 where they are not.

    A file in which they stand beside others differs by some bytes a tensor.
    """
    packed = sum(tensor.grid.packed_bytes(tensor.integers.numel()) for tensor in tensors)
    return max(0, packed - len(_encoded(tensors)))


def _key(tensors: Sequence[QuantizedTensor]) -> bytes:
    """A digest of all that the stream depends on; it takes a tenth of the time of coding."""
    digest = hashlib.blake2b()
    for tensor in tensors:
        digest.update(f"{tensor.grid} {tensor.integers.numel()}\n".encode())
        digest.update(tensor.integers.cpu().contiguous().numpy().data)
    return digest.digest()


def _encoded(tensors: Sequence[QuantizedTensor]) -> bytes:
    coder = _constriction().stream.stack.AnsCoder()
    ordered = [tensors[index] for index in _order([tensor.grid for tensor in tensors])]
    heads: list[bytes] = []
    coded: list[tuple[QuantizedTensor, Frequencies]] = []
    for run in _runs(ordered):
        head = run.model.model if run.is_coded else _PACKED
        heads.append(bytes([head + 8 * (len(run.tensors) - 1)]))
        if run.is_coded:
            heads.append(run.model.parameters)
            coded += [(tensor, run.model) for tensor in run.tensors]
        else:
            heads += [pack(tensor.integers, tensor.grid) for tensor in run.tensors]
    for tensor, frequencies in reversed(coded):  # a stack: the first tensor must come out first
        coder.encode_reverse(_codes(tensor), _categorical(frequencies))
    words = coder.get_compressed().astype("<u4", copy=False)
    return b"".join(heads) + words.tobytes().rstrip(b"\0")


@dataclass(frozen=True)
class _Run:
    """Tensors that share a model; `counts` are those of their integers together."""

    tensors: tuple[QuantizedTensor, ...]
    counts: NDArray[np.int64]
    model: Frequencies

    @classmethod
    def of(cls, tensors: tuple[QuantizedTensor, ...], counts: NDArray[np.int64]) -> "_Run":
        return cls(tensors, counts, best_frequencies(counts))

    @property
    def is_coded(self) -> bool:
        return self.model.num_bytes(self.counts) < self.packed_bytes

    @property
    def packed_bytes(self) -> int:
        return 1 + sum(tensor.grid.packed_bytes(tensor.integers.numel()) for tensor in self.tensors)

    @property
    def num_bytes(self) -> float:
        return min(self.model.num_bytes(self.counts), self.packed_bytes)


def _runs(ordered: Sequence[QuantizedTensor]) -> list[_Run]:
    """Every tensor joins the run before it where that is shorter than a run of its own."""
    runs: list[_Run] = []
    for tensor in ordered:
        levels = tensor.grid.num_levels
        alone = _Run.of((tensor,), _counts(tensor))
        last = runs[-1] if runs else None
        if last is not None and len(last.counts) == levels and len(last.tensors) < _LONGEST:
            joined = _Run.of((*last.tensors, tensor), last.counts + alone.counts)
            if joined.num_bytes <= last.num_bytes + alone.num_bytes:
                runs[-1] = joined
                continue
        runs.append(alone)
    return runs


def _order(grids: Sequence[Grid]) -> list[int]:
    """Positions of the tensors in the stream: equally many levels together, otherwise as they came."""
    first: dict[int, int] = {}
    for grid in grids:
        first.setdefault(grid.num_levels, len(first))
    return sorted(range(len(grids)), key=lambda index: first[grids[index].num_levels])


def decode(data: bytes, shapes: Sequence[Sequence[int]], grids: Sequence[Grid]) -> list[Tensor]:
    """The integers (int8) that `encode` wrote, in these shapes and on these grids.

    Raises:
        ValueError: the stream is cut short, has bytes left over, or names a model that does not exist.
        ImportError: `constriction` is not installed.
    """
    order = _order(grids)
    counts = [prod(shapes[index]) for index in order]
    models, words = _read_models(data, counts, [grids[index] for index in order])
    if words.endswith(b"\0"):
        raise ValueError("entropy-coded integers: the stream ends in a zero byte, which no stream does")
    words += bytes(-len(words) % _WORD_BYTES)
    coder = _constriction().stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    result: dict[int, Tensor] = {}
    for index, count, model in zip(order, counts, models, strict=True):
        if isinstance(model, Tensor):
            integers = model
        else:
            codes = coder.decode(_categorical(model), count)
            integers = torch.from_numpy((codes + grids[index].low).astype(np.int8))
        result[index] = integers.reshape(tuple(shapes[index]))
    if not coder.is_empty():
        raise ValueError(
            "entropy-coded integers: the stream does not end where its tensors do; it is damaged"
        )
    return [result[index] for index in range(len(shapes))]


def entropy_bits(integers: Tensor) -> float:
    """Empirical entropy of the integers, in bits for all of them together."""
    counts = torch.unique(integers, return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def _read_models(
    data: bytes, counts: Sequence[int], grids: Sequence[Grid]
) -> tuple[list[Frequencies | Tensor], bytes]:
    """The model of every tensor, or its integers where they are packed; and what comes behind the models."""
    models: list[Frequencies | Tensor] = []
    position = 0
    while len(models) < len(counts):
        if position >= len(data):
            raise ValueError(
                f"entropy-coded integers: the stream ends after {len(data)} bytes, before its tensors do"
            )
        number, length = data[position] % 8, data[position] // 8 + 1
        own = grids[len(models) : len(models) + length]
        if len(own) < length or len({grid.num_levels for grid in own}) > 1:
            raise ValueError(
                f"entropy-coded integers: byte {position} is damaged: {length} tensors cannot share a model there"
            )
        sizes = [grid.packed_bytes(count) for grid, count in zip(own, counts[len(models) :], strict=False)]
        size = sum(sizes) if number == _PACKED else _parameter_bytes(number, own[0], position)
        body = data[position + 1 : position + 1 + size]
        if len(body) < size:
            raise ValueError(
                f"entropy-coded integers: expected {position + 1 + size} bytes at least, got {len(data)}"
            )
        if number == _PACKED:
            for grid, part in zip(own, sizes, strict=True):
                models.append(unpack(body[:part], counts[len(models)], grid))
                body = body[part:]
        else:
            models += [read_frequencies(number, body, own[0].num_levels)] * length
        position += 1 + size
    return models, data[position:]


def _parameter_bytes(number: int, grid: Grid, position: int) -> int:
    try:
        return parameter_bytes(number, grid.num_levels)
    except ValueError as error:
        raise ValueError(f"entropy-coded integers: byte {position} is damaged: {error}") from error


def _codes(tensor: QuantizedTensor) -> NDArray[np.int32]:
    return (tensor.integers.cpu().reshape(-1).to(torch.int32) - tensor.grid.low).numpy()


def _counts(tensor: QuantizedTensor) -> NDArray[np.int64]:
    """How often each level occurs; a part at a time, for what counts makes whole numbers of 8 bytes of all."""
    levels, flat = tensor.grid.num_levels, tensor.integers.cpu().reshape(-1)
    counts = np.zeros(levels, np.int64)
    for part in flat.split(_COUNTED_TOGETHER):
        counts += np.bincount(part.numpy().astype(np.int64) - tensor.grid.low, minlength=levels)
    return counts


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
