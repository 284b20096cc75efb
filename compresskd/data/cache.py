"""Decoded samples on disk, so that images are decoded once.

An entry is two files named by its key: KEY.bin, the pixels [N, C, H, W] uint8 followed by the targets [N] int64,
and KEY.json, which says their shape and checksum and is written last. Both appear by a rename, under a lock; what
does not fit its checksum is made again.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from compresskd.data.assemble import Source
from compresskd.data.digest import content_digest, seal

logger = logging.getLogger(__name__)

_FORMAT = 1

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Stream:
    """Samples on their way into the cache: blocks of pixels [n, C, H, W] uint8 and targets [n] int64."""

    class_names: tuple[str, ...]
    blocks: Blocks


@dataclass(frozen=True)
class Cache:
    """Entries in `directory`; those of more than `max_in_memory_bytes` are memory-mapped instead of read."""

    directory: Path
    max_in_memory_bytes: int

    @classmethod
    def at(cls, directory: str | None, max_in_memory_bytes: int) -> "Cache":
        """In `directory`, by default $COMPRESSKD_CACHE or ~/.cache/compresskd."""
        if max_in_memory_bytes < 0:
            raise ValueError(
                f"data.max_in_memory_bytes: expected 0 (stream everything) or more, got {max_in_memory_bytes}"
            )
        chosen = directory or os.environ.get("COMPRESSKD_CACHE") or Path.home() / ".cache" / "compresskd"
        return cls(Path(chosen).expanduser(), max_in_memory_bytes)

    def fetch(self, key: str, what: str, open_stream: Callable[[], Stream]) -> tuple[Source, tuple[str, ...]]:
        """Samples and class names of entry `key`, decoded from `open_stream()` if there is no good one.

        A process that finds another one decoding waits for it. Raises OSError if the directory cannot be written.
        """
        found = self._read(key)
        if found is not None:
            return found
        lock = FileLock(self.directory / f"{key}.lock")
        with self._writing(what):
            self.directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            found = self._read(key)
            if found is None:
                logger.info("decoding %s once into %s", what, self.directory)
                self._write(key, what, open_stream())
                found = self._read(key)
        finally:
            lock.release()
        if found is None:
            raise OSError(f"{self.directory / key}.bin was written and cannot be read back: check the disk")
        return found

    def _read(self, key: str) -> tuple[Source, tuple[str, ...]] | None:
        """The entry, or None if it is missing or damaged."""
        try:
            header = json.loads((self.directory / f"{key}.json").read_bytes())
            shape, digest, class_names = header["shape"], header["sha256"], tuple(header["class_names"])
            if header != _header(shape, digest, class_names, header["what"]):
                raise ValueError("its header is damaged")
            source = self._samples(self.directory / f"{key}.bin", shape, digest)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("cached samples %s are not used, and made again: %s", self.directory / key, error)
            return None
        return source, class_names

    def _samples(self, file: Path, shape: list[int], digest: str) -> Source:
        num_bytes = int(np.prod(shape))
        if file.stat().st_size != num_bytes + 8 * shape[0]:
            raise ValueError(f"expected {num_bytes + 8 * shape[0]} bytes, got {file.stat().st_size}")
        streamed = num_bytes > self.max_in_memory_bytes
        raw = np.memmap(file, np.uint8, mode="r") if streamed else np.fromfile(file, np.uint8)
        with warnings.catch_warnings():
            # A read-only mapping is what is wanted: systems refuse a writable one that exceeds their memory, and
            # nothing writes to stored pixels.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            pixels = torch.from_numpy(raw[:num_bytes]).view(shape)
        targets = torch.from_numpy(np.frombuffer(raw[num_bytes:].tobytes(), np.int64).copy())
        # Reading all of a set that does not fit in memory only to check it would take minutes.
        if not streamed and content_digest(pixels, targets) != digest:
            raise ValueError("its content does not fit its checksum")
        return Source(pixels, targets, digest=digest, streamed=streamed)

    def _write(self, key: str, what: str, stream: Stream) -> None:
        hasher, targets, shape = hashlib.sha256(), [], []
        # The lock is held: a temporary file of this name can only be what a killed process left.
        pixels_file, header_file = (self.directory / f"{key}.{suffix}" for suffix in ("bin", "json"))
        temporary = self.directory / f"{key}.tmp"
        try:
            with self._writing(what), temporary.open("wb") as file:
                for pixels, labels in _readable(stream.blocks, what):
                    block = np.ascontiguousarray(pixels)
                    hasher.update(block.data)
                    file.write(block.data)
                    targets.append(labels)
                    shape = list(block.shape[1:])
                if not targets:
                    raise ValueError(f"{what} has no image")
                labels = np.concatenate(targets)
                file.write(labels.tobytes())
            shape = [len(labels), *shape]
            digest = seal(hasher, torch.from_numpy(labels), shape=shape, dtype="uint8")
            with self._writing(what):
                os.replace(temporary, pixels_file)
                temporary.write_text(json.dumps(_header(shape, digest, stream.class_names, what)))
                os.replace(temporary, header_file)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"decoded images of {what} cannot be written to {self.directory}: {error}; write "
                f"data.cache_dir=DIR, a folder on a disk with room"
            ) from error


def _readable(blocks: Blocks, what: str) -> Blocks:
    """The same blocks; a source that cannot be read is not to be taken for a cache that cannot be written."""
    try:
        yield from blocks
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def _header(shape: list[int], digest: str, class_names: tuple[str, ...], what: str) -> dict:
    header = {
        "format": _FORMAT,
        "shape": shape,
        "sha256": digest,
        "class_names": list(class_names),
        "what": what,
    }
    return {**header, "header_sha256": hashlib.sha256(json.dumps(header).encode()).hexdigest()}
