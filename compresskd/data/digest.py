"""Hashes of contents: of decoded samples, and of the files that they come from."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

# Above this many bytes, source files are told apart by name, size and time of change instead of being read.
_READ_WHOLE_BYTES = 2 * 2**30


def content_digest(pixels: Tensor, targets: Tensor) -> str:
    """SHA-256 (hex) of decoded samples: pixels [N, ...] and targets [N], with shape and dtype."""
    hasher = hashlib.sha256(pixels.contiguous().numpy().data)
    return seal(hasher, targets, shape=pixels.shape, dtype=str(pixels.dtype).removeprefix("torch."))


def seal(hasher: "hashlib._Hash", targets: Tensor, *, shape: Sequence[int], dtype: str) -> str:
    """`content_digest` of samples whose pixels went into `hasher` already, in any number of parts."""
    hasher.update(targets.contiguous().numpy().data)
    hasher.update(json.dumps([list(shape), dtype]).encode())
    return hasher.hexdigest()


def files_digest(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 (hex) of names relative to `root` and contents of `files`.

    For sets of more than 2 GiB, size, inode and times stand for the content (that of the last change, which nobody can
    set back, among them): the result is a key of the cache, where a false change costs time and no more. A file that
    cannot be read is told from one that can.
    """
    total = sum(map(_size, files))
    one = _content if total <= _READ_WHOLE_BYTES else _state
    with ThreadPoolExecutor() as pool:
        entries = [
            (file.relative_to(root).as_posix(), digest)
            for file, digest in zip(files, pool.map(one, files), strict=True)
        ]
    return hashlib.sha256(json.dumps(sorted(entries)).encode()).hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _content(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.errno}"


def _state(file: Path) -> str:
    try:
        state = file.stat()
    except OSError as error:
        return f"unreadable: {error.errno}"
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
