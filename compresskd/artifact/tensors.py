"""A file of tensors in the format of safetensors, written and read in one pass that is hashed on the way.

    length of the header, 8 bytes | header, JSON | the tensors one after the other, in the order of the header

The package `safetensors` holds a whole file in memory beside the tensors that it makes of it; here each is read into
the memory that it stays in. Files are equal to those that the package writes, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compresskd.artifact.errors import ArtifactError, refusing
from compresskd.run import open_regular

_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # bytes, as the package allows
_ALIGNED = 8
# in the order of the package, the last first in a file
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies behind the header, in bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> hashlib._Hash:
    """Write contiguous tensors of the CPU; the SHA-256 of the file. Raises OSError where it cannot be written."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (_header(tensors), *(view(tensors[name]) for name in _ordered(tensors))):
            digest.update(part)
            file.write(part)
    return digest


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file, which is not written."""
    return len(_header(tensors)) + sum(value.numel() * value.itemsize for value in tensors.values())


def view(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of the CPU where they are; of one that is not contiguous, of a copy."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], hashlib._Hash]:
    """The tensors of a file, and its SHA-256. Raises ArtifactError where it is no such file, or damaged."""
    digest, tensors = hashlib.sha256(), {}
    with refusing(path), open_regular(path) as file:
        for place in _places(file, os.fstat(file.fileno()).st_size, digest):
            tensor = torch.empty(place.shape, dtype=place.dtype)
            memory = view(tensor)
            if file.readinto(memory) != len(memory):
                raise ArtifactError(f"it is damaged: it ends within '{place.name:.80}'")
            digest.update(memory)
            tensors[place.name] = tensor
    return tensors, digest


def _ordered(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name))


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    described: dict[str, Any] = {_METADATA: {"format": "pt"}}
    end = 0
    for name in _ordered(tensors):
        value, start = tensors[name], end
        end = start + value.numel() * value.itemsize
        described[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _places(file: BufferedReader, size: int, digest: hashlib._Hash) -> Iterator[_Place]:
    """Where the tensors are, one after the other until the end; the file stands at the first."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
        raise ArtifactError(f"it is damaged: no header of {length} bytes fits into {size:,}")
    text = file.read(length)
    digest.update(start + text)
    try:
        described = json.loads(text.decode("utf-8"), object_pairs_hook=unambiguous)
        found = [_place(name, value) for name, value in described.items() if name != _METADATA]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"it is damaged: its header is none of tensors ({error})") from error
    end = 0
    for place in sorted(found, key=lambda place: (place.start, place.end)):
        if place.start != end or place.end - end != math.prod(place.shape) * place.dtype.itemsize:
            raise ArtifactError(f"it is damaged: '{place.name:.80}' does not begin or end where it should")
        end = place.end
        if end > size - 8 - length:
            raise ArtifactError(f"it is damaged: it ends within '{place.name:.80}'")
        yield place
    if end != size - 8 - length:
        raise ArtifactError(f"it is damaged: {size - 8 - length - end:,} bytes are left over")


def _place(name: str, value: Any) -> _Place:
    shape, (start, end) = value["shape"], value["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"'{name:.80}' has a shape or a place that is none")
    return _Place(name, _DTYPES[value["dtype"]], tuple(shape), start, end)


def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON as a dictionary. Raises ValueError where a name is there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a name is there twice among {[name for name, _ in pairs]!r:.200}")
    return values
