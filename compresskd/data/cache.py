"""Decoded samples on disk, so that images are decoded once.

An entry is two files named by its key: KEY.bin, the pixels [N, C, H, W] uint8 followed by the targets and the hashes
of the samples, [N] int64 each, and KEY.json, which says their shape and checksums, and what was noticed; it is
written last. Both appear by a rename, under a lock; what does not fit its checksum is made again.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from compresskd.data.assemble import Source
from compresskd.data.digest import content_digest, seal
from compresskd.data.identical import sample_hashes
from compresskd.data.notice import Notice
from compresskd.options import OptionError

logger = logging.getLogger(__name__)

_FORMAT = 2
_SEAL = "header_sha256"

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Stream:
    """Samples on their way into the cache: blocks of pixels [n, C, H, W] uint8 and targets [n] int64.

    `notices` is filled by the time that the blocks have ended.
    """

    class_names: tuple[str, ...]
    blocks: Blocks
    notices: list[Notice] = field(default_factory=list)


@dataclass(frozen=True)
class Cache:
    """Entries in `directory`; those of more than `max_in_memory_bytes` are memory-mapped instead of read."""

    directory: Path
    max_in_memory_bytes: int

    @classmethod
    def at(cls, directory: str | None, max_in_memory_bytes: int) -> "Cache":
        """In `directory`, by default $COMPRESSKD_CACHE or ~/.cache/compresskd."""
        if max_in_memory_bytes < 0:
            raise OptionError("max_in_memory_bytes", max_in_memory_bytes, ">= 0 (0 streams everything)")
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
            if header != _sealed({name: value for name, value in header.items() if name != _SEAL}):
                raise ValueError("its header is damaged")
            if header["format"] != _FORMAT:
                raise ValueError(f"its format is {header['format']}")
            source = self._samples(self.directory / f"{key}.bin", header)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("cached samples %s are not used, and made again: %s", self.directory / key, error)
            return None
        return source, tuple(header["class_names"])

    def _samples(self, file: Path, header: Mapping[str, Any]) -> Source:
        shape = header["shape"]
        num_bytes = int(np.prod(shape))
        expected = num_bytes + 2 * 8 * shape[0]
        if file.stat().st_size != expected:
            raise ValueError(f"expected {expected} bytes, got {file.stat().st_size}")
        streamed = num_bytes > self.max_in_memory_bytes
        raw = np.memmap(file, np.uint8, mode="r") if streamed else np.fromfile(file, np.uint8)
        with warnings.catch_warnings():
            # A read-only mapping is what is wanted: systems refuse a writable one that exceeds their memory, and
            # nothing writes to stored pixels.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            pixels = torch.from_numpy(raw[:num_bytes]).view(shape)
        tail = raw[num_bytes:].tobytes()
        targets, hashes = torch.from_numpy(np.frombuffer(tail, np.int64).copy()).split(shape[0])
        # Reading all of a set that does not fit in memory only to check it would take minutes.
        intact = streamed or content_digest(pixels, targets) == header["sha256"]
        if not intact or _sha256(tail) != header["tail_sha256"]:
            raise ValueError("its content does not fit its checksum")
        notices = tuple(Notice(**{**one, "examples": tuple(one["examples"])}) for one in header["notices"])
        return Source(pixels, targets, header["sha256"], streamed, hashes, notices)

    def _write(self, key: str, what: str, stream: Stream) -> None:
        hasher, targets, hashes, shape = hashlib.sha256(), [], [], []
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
                    hashes.append(sample_hashes(block).numpy())
                    shape = list(block.shape[1:])
                if not targets:
                    raise ValueError(f"{what} has no image")
                labels = np.concatenate(targets)
                tail = labels.tobytes() + np.concatenate(hashes).tobytes()
                file.write(tail)
            shape = [len(labels), *shape]
            digest = seal(hasher, torch.from_numpy(labels), shape=shape, dtype="uint8")
            header = {
                "format": _FORMAT,
                "shape": shape,
                "sha256": digest,
                "tail_sha256": _sha256(tail),
                "class_names": list(stream.class_names),
                "notices": [
                    asdict(notice) | {"examples": list(notice.examples)} for notice in stream.notices
                ],
                "what": what,
            }
            with self._writing(what):
                os.replace(temporary, pixels_file)
                temporary.write_text(json.dumps(_sealed(header)))
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


def _sealed(header: Mapping[str, Any]) -> dict[str, Any]:
    return {**header, _SEAL: _sha256(json.dumps(header).encode())}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
