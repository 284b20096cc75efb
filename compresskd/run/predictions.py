"""predictions.npz: what each stage predicted of the test set, one array a stage, and the targets.

Classes are integers [N], values and labels [N, D]; `scores/NAME` holds one score of each sample, higher is better, of a
task that predicts no class of a sample.

Read by hand rather than by numpy, which believes what a file says of its own size.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from compresskd.run.errors import RunDirectoryError
from compresskd.run.files import atomic, read_bytes

_AT_MOST = 2**25  # bytes of the file
_MOST_VALUES = 2**28  # bytes of all arrays
_SUFFIX = ".npy"
SCORES = "scores/"  # before the name of a stage
_OF_CONTENT = (
    ValueError, OSError, EOFError, KeyError, RuntimeError, RecursionError, MemoryError, SyntaxError, zipfile.BadZipFile,
    zlib.error, struct.error,
)  # fmt: skip


def read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """Every array by name, each of numbers [N] or [N, D].

    Raises:
        FileNotFoundError: there is no such file.
        RunDirectoryError: it is damaged, or holds something else.
    """
    data = read_bytes(path, at_most=_AT_MOST)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("a name is there twice")
            if sum(member.file_size for member in members) > _MOST_VALUES:
                raise ValueError("its arrays are out of proportion")
            return {m.filename.removesuffix(_SUFFIX): _array(archive.read(m), m.filename) for m in members}
    except _OF_CONTENT as error:
        raise RunDirectoryError(
            f"{path} is damaged: {str(error)[:120] or type(error).__name__}; remove it to go on without the "
            "predictions of the stages that are finished"
        ) from error


def write_predictions(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write all arrays, replacing the file atomically."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def _array(data: bytes, name: str) -> NDArray[Any]:
    file = io.BytesIO(data)
    if npy.read_magic(file) != (1, 0):
        raise ValueError(f"{name} is no array of this format")
    shape, _, dtype = npy.read_array_header_1_0(file)
    size = len(data) - file.tell()
    if dtype.kind not in "iuf" or len(shape) not in (1, 2) or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name} holds {dtype} {shape} in {size} bytes, expected numbers [N] or [N, D]")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()
