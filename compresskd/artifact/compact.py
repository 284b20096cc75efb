"""The smallest form of a model: one file, `.ckd`, everything included.

    b"CKD" | format, 128 added where integers are entropy-coded | length of the header, 7 bits a byte, the last
    byte below 128 | header | scales, float16, with packed zero points | floats | integers | checksum

The checksum is an 8-byte BLAKE2b over all before it: it tells damage, and is no signature. Lengths of all parts
but the header's are those of the architecture that the header names. Numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compresskd.artifact.content import Content, check
from compresskd.artifact.errors import ArtifactError, refusing
from compresskd.artifact.header import MAX_BYTES, Header, pack_header, unpack_header
from compresskd.artifact.tensors import view
from compresskd.artifact.varint import read_varint, varint
from compresskd.quant import entropy
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, pack, unpack
from compresskd.run import atomic, open_regular

MAGIC = b"CKD"
# 2 has tied tensors once for each name, 3 once, 4 the words of a tokenizer apart; the least that does is written
_PLAIN, _TIED, FORMAT = 2, 3, 4
SUFFIX = ".ckd"
_CODED = 128
_CHECKSUM = 8
_LEAST = len(MAGIC) + 2 + _CHECKSUM
_MAX_PER_BYTE = 4096  # values; coded integers that are nearly all alike come to 1,000 a byte
_ALWAYS_ALLOWED = 2**26
_BEGINNING = 2**21  # bytes that are read at first: most headers are among them
_MOST_PER_VALUE = 16  # bytes: a float64, or an integer with a scale and a zero point of its own


@dataclass(frozen=True)
class Split:
    """Where the bytes of a compact file are; they sum to its size. The header is what is not the tokenizer of it."""

    header: int
    integers: int
    scales: int
    floats: int
    checksum: int
    tokenizer: int = 0

    @property
    def total(self) -> int:
        """Size of the file."""
        return self.header + self.tokenizer + self.integers + self.scales + self.floats + self.checksum


def write_compact(content: Content, path: Path, *, coded: bool = True, trust: Sequence[str] = ()) -> Split:
    """Write a model to one file, replacing it as a whole; where its bytes are.

    Args:
        content: the model. path: of the file; the suffix is the caller's affair, `.ckd` by custom.
        coded: entropy-code the integers, where that gains anything; else they are packed.
        trust: packages besides compresskd that its architecture is built from.
    """
    parts, split = _laid_out(content, coded=coded, trust=trust)
    with atomic(path) as temporary, temporary.open("wb") as file:
        for part in _with_checksum(parts):
            file.write(part)
    return split


def split_of(content: Content, *, coded: bool = True, trust: Sequence[str] = ()) -> Split:
    """Where the bytes of the file would be; only the entropy code, if there is one, is computed to know."""
    return _laid_out(content, coded=coded, trust=trust)[1]


def read_compact(path: Path, *, trust: Sequence[str] = ()) -> Content:
    """Read what `write_compact` wrote, verified. Raises ArtifactError saying what is wrong."""
    with refusing(path), open_regular(path.resolve()) as file:  # whoever names a link means the file
        size = os.fstat(file.fileno()).st_size
        head = file.read(_BEGINNING)
        head += file.read(max(0, _end_of_header(head) - len(head)))
        if size <= len(head):
            return decode(head, trust=trust)
        _check_size(head, size, trust)  # a sparse file of many gigabytes costs its writer nothing
        data = bytearray(size)
        data[: len(head)] = head
        read = len(head) + file.readinto(memoryview(data)[len(head) :])
        return decode(data if read == size else data[:read], trust=trust)


def encode(content: Content, *, coded: bool = True, trust: Sequence[str] = ()) -> tuple[bytes, Split]:
    """The bytes of the file, the same for the same content."""
    parts, split = _laid_out(content, coded=coded, trust=trust)
    return b"".join(_with_checksum(parts)), split


def _laid_out(
    content: Content, *, coded: bool, trust: Sequence[str]
) -> tuple[Iterator[bytes | memoryview], Split]:
    """The parts of the file but for the checksum, made one by one as they are asked for, and their sizes."""
    header = pack_header(content, trust=trust)
    ordered = [content.tensors[name] for name in header.names]
    quantized = [value for value in ordered if isinstance(value, QuantizedTensor)]
    floats = [value for value in ordered if isinstance(value, Tensor)]
    packed = sum(value.grid.packed_bytes(value.shape.numel()) for value in quantized)
    code = entropy.encode(quantized) if coded and quantized else b""
    is_coded = bool(code) and len(code) < packed
    version = FORMAT if header.has_words else _TIED if header.has_ties else _PLAIN
    head = MAGIC + bytes([version | (_CODED if is_coded else 0)]) + varint(len(header.data)) + header.data
    scales = b"".join(_scale_bytes(value) for value in quantized) + _activation_bytes(content)
    integers = iter([code]) if is_coded else (pack(value.integers, value.grid) for value in quantized)
    size = sum(value.numel() * value.itemsize for value in floats)
    own = len(head) - header.tokenizer
    split = Split(own, len(code) if is_coded else packed, len(scales), size, _CHECKSUM, header.tokenizer)
    return chain([head, scales], map(view, floats), integers), split


def _with_checksum(parts: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    checksum = hashlib.blake2b(digest_size=_CHECKSUM)
    for part in parts:
        checksum.update(part)
        yield part
    yield checksum.digest()


def decode(data: bytes | bytearray, *, trust: Sequence[str] = ()) -> Content:
    """The model in these bytes. Raises ArtifactError, or ValueError, saying what is wrong."""
    _check_beginning(data)
    body, checksum = memoryview(data)[:-_CHECKSUM], data[-_CHECKSUM:]
    if _checksum(body) != checksum:
        raise ArtifactError("it is damaged: its checksum is not the one recorded at its end")
    header, start = _header(body, len(data), trust)
    content = _read_body(_Reader(body, start), header, coded=bool(data[len(MAGIC)] & _CODED))
    check(content)
    return content


def _check_beginning(data: bytes | bytearray) -> None:
    if data[: len(MAGIC)] != MAGIC:
        begins = bytes(data[:8])
        raise ArtifactError(f"it is no compact model file: it begins with {begins!r}, expected {MAGIC!r}")
    if len(data) < _LEAST:
        raise ArtifactError(f"it is cut short: {len(data)} bytes, the least is {_LEAST}")
    version = data[len(MAGIC)] & ~_CODED
    if not _PLAIN <= version <= FORMAT:
        raise ArtifactError(f"it has format {version}; this version reads formats {_PLAIN} to {FORMAT}")


def _header(body: memoryview, stored: int, trust: Sequence[str]) -> tuple[Header, int]:
    """The header of a file of `stored` bytes, and where what follows it begins."""
    size, start = read_varint(body, len(MAGIC) + 1, "header")
    if size > min(MAX_BYTES, len(body) - start):
        raise ArtifactError(f"header: {size} bytes, the file has {len(body) - start} after its beginning")
    tied_too = body[len(MAGIC)] & ~_CODED < _TIED
    return unpack_header(
        bytes(body[start : start + size]), stored=stored, tied_too=tied_too, trust=trust
    ), start + size


def _end_of_header(beginning: bytes) -> int:
    _check_beginning(beginning)
    size, start = read_varint(beginning, len(MAGIC) + 1, "header")
    if size > MAX_BYTES:
        raise ArtifactError(f"header: {size:,} bytes, expected at most {MAX_BYTES:,}")
    return start + size


def _check_size(beginning: bytes, size: int, trust: Sequence[str]) -> None:
    """Raise ArtifactError where a file has more bytes than its header tells of: four and more for each value."""
    _check_beginning(beginning)
    header, start = _header(memoryview(beginning), size, trust)
    values = sum(prod(shape) for shape in header.shapes.values())
    most = start + _MOST_PER_VALUE * (values + 3 * len(header.inputs)) + _CHECKSUM
    if size > most:
        raise ArtifactError(f"it has {size:,} bytes, its header tells of at most {most:,}")


class _Reader:
    """Takes the parts of the body one after the other."""

    def __init__(self, data: memoryview, position: int):
        self.data, self.position = data, position

    def take(self, size: int, what: str) -> memoryview:
        """The next bytes. Raises ArtifactError where there are fewer."""
        left = len(self.data) - self.position
        if size > left:
            raise ArtifactError(f"{what}: expected {size} bytes, the file has {left} left")
        self.position += size
        return self.data[self.position - size : self.position]


def _read_body(reader: _Reader, header: Header, *, coded: bool) -> Content:
    count = sum(prod(shape) for shape in header.shapes.values())
    if count > max(_ALWAYS_ALLOWED, _MAX_PER_BYTE * len(reader.data)):
        raise ArtifactError(f"{count:,} values in {len(reader.data):,} bytes are out of proportion")
    quantized = {name: way for name, way in header.ways.items() if isinstance(way, tuple)}
    scales, zero_points = {}, {}
    for name, (grid, granularity) in quantized.items():
        num = granularity.num_scales(header.shapes[name])
        scales[name] = _array(reader.take(2 * num, f"scales of '{name}'"), torch.float16, (num,))
        if grid.has_zero_point:
            size = grid.packed_bytes(num)
            zero_points[name] = unpack(reader.take(size, f"zero points of '{name}'"), num, grid)
    activations = {}
    for layer in header.inputs:
        scale = _array(reader.take(2, f"scale of the input of '{layer}'"), torch.float16, (1,))
        zero_point = _array(reader.take(1, f"zero point of the input of '{layer}'"), torch.int8, (1,))
        activations[layer] = (scale, zero_point)
    tensors: dict[str, Tensor | QuantizedTensor] = dict(_floats(reader, header))
    shapes = [header.shapes[name] for name in quantized]
    grids = [grid for grid, _ in quantized.values()]
    integers = _integers(reader, shapes, grids, coded=coded)
    for (name, (grid, granularity)), values in zip(quantized.items(), integers, strict=True):
        tensors[name] = QuantizedTensor(values, scales[name], zero_points.get(name), grid, granularity)
    ordered = {name: tensors[name] for name in header.ways}
    ordered |= {name: ordered[holder] for name, holder in header.same.items()}
    return Content(header.architecture, header.modules, ordered, activations, header.about)


def _floats(reader: _Reader, header: Header) -> Iterator[tuple[str, Tensor]]:
    for name, way in header.ways.items():
        if name in header.counters:
            yield name, torch.tensor(header.counters[name], dtype=torch.int64)
        elif isinstance(way, torch.dtype):
            shape = header.shapes[name]
            yield name, _array(reader.take(prod(shape) * way.itemsize, f"'{name}'"), way, shape)


def _integers(
    reader: _Reader, shapes: list[tuple[int, ...]], grids: list[Grid], *, coded: bool
) -> list[Tensor]:
    if coded:
        rest = len(reader.data) - reader.position
        return entropy.decode(bytes(reader.take(rest, "integers")), shapes, grids)
    result = []
    for shape, grid in zip(shapes, grids, strict=True):
        packed = reader.take(grid.packed_bytes(prod(shape)), "integers")
        result.append(unpack(packed, prod(shape), grid).reshape(shape))
    if reader.position != len(reader.data):
        raise ArtifactError(f"{len(reader.data) - reader.position} bytes are left over after the integers")
    return result


def _scale_bytes(tensor: QuantizedTensor) -> bytes:
    zero_points = b"" if tensor.zero_point is None else pack(tensor.zero_point, tensor.grid)
    return _bytes(tensor.scale) + zero_points


def _activation_bytes(content: Content) -> bytes:
    return b"".join(_bytes(value) for pair in content.activations.values() for value in pair)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(view(tensor))


def _array(data: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    values = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    return values.view(dtype).reshape(tuple(shape))


def _checksum(body: memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM).digest()
