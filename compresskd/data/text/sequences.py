"""Sequences of tokens one after the other, in memory or, where they are many, in memory-mapped files."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from compresskd.data.cache import Cache
from compresskd.data.notice import Notice

logger = logging.getLogger(__name__)

_AT_ONCE = 2**20  # tokens that are looked at together, so that no copy of all is made
_REST, _NOTICES = "rest.npz", "notices.json"


@dataclass(frozen=True, eq=False)
class Block:
    """Some samples: columns [T] int32 by name, one sample after the other; lengths [n]; and more [n, ...] by name."""

    columns: Mapping[str, np.ndarray]
    lengths: np.ndarray
    more: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Sequences:
    """Samples of different lengths.

    Attributes:
        columns: [T] int32 by name; sample m is at offsets[m]:offsets[m + 1] of each.
        offsets: [M + 1] int64.
        more: [M, ...] by name, what else is known of each sample.
        streamed: whether the columns are memory-mapped files.
    """

    columns: Mapping[str, Tensor]
    offsets: Tensor
    more: Mapping[str, Tensor]
    notices: tuple[Notice, ...] = ()
    streamed: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self, rows: Tensor, size: int) -> np.ndarray:
        """[size] int64: how often each number is a token of these samples."""
        wanted = np.zeros(len(self), bool)
        wanted[rows.numpy()] = True
        ids, offsets = self.columns["input_ids"].numpy(), self.offsets.numpy()
        found = np.zeros(size, np.int64)
        for first, last in _groups(offsets):
            chosen = wanted[first:last].repeat(np.diff(offsets[first : last + 1]))
            found += np.bincount(ids[offsets[first] : offsets[last]][chosen], minlength=size)
        return found

    def hashes(self) -> Tensor:
        """[M] int64: a hash of the tokens of each sample (multilinear modulo 2^64)."""
        longest = int(self.offsets.diff().max()) if len(self) else 0
        factors = np.random.default_rng(0).integers(0, 2**64, longest + 1, dtype=np.uint64) | np.uint64(1)
        ids, offsets = self.columns["input_ids"].numpy(), self.offsets.numpy()
        found = np.zeros(len(self), np.uint64)
        for first, last in _groups(offsets):
            lengths = np.diff(offsets[first : last + 1])
            starts = offsets[first:last] - offsets[first]
            place = np.arange(offsets[last] - offsets[first]) - starts.repeat(lengths)
            products = (ids[offsets[first] : offsets[last]].astype(np.uint64) + np.uint64(1)) * factors[place]
            sums = np.add.reduceat(np.append(products, np.uint64(0)), starts)
            found[first:last] = np.where(lengths > 0, sums, 0) + factors[lengths]
        return torch.from_numpy(found.view(np.int64))


def _groups(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last sample of groups of about a million tokens."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + _AT_ONCE, "right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def collected(blocks: Iterable[Block], notices: list[Notice], cache: Cache, key: str, what: str) -> Sequences:
    """All samples of `blocks`, in memory, or where they take more than `cache.max_in_memory_bytes` in files.

    Files are kept under `key` and found again, without `blocks` being asked. `notices` are full when these end.

    Raises OSError where the files cannot be written, ValueError where there is no sample.
    """
    entry = cache.directory / key
    found = _mapped(entry)
    if found is not None:
        return found
    with ExitStack() as stack:
        writer = _Writer(entry, stack)
        parts: dict[str, list[np.ndarray]] = {}
        rest: dict[str, list[np.ndarray]] = {}
        size = 0
        for block in blocks:
            for name, values in block.columns.items():
                parts.setdefault(name, []).append(np.ascontiguousarray(values, np.int32))
                size += parts[name][-1].nbytes
            for name, values in {"lengths": block.lengths, **block.more}.items():
                rest.setdefault(name, []).append(values)
            if size > cache.max_in_memory_bytes:
                writer.write(parts, what)
                parts = {name: [] for name in parts}
        if not rest:
            raise ValueError(f"{what} has no sample that can be used")
        more = {name: np.concatenate(values) for name, values in rest.items()}
        if writer.is_open:
            writer.write(parts, what)
            writer.close(more, notices)
    if writer.is_open:
        found = _mapped(entry)
        if found is None:
            raise OSError(f"{entry} was written and cannot be read back: check the disk")
        return found
    columns = {name: torch.from_numpy(np.concatenate(values)) for name, values in parts.items()}
    return _sequences(columns, more, tuple(notices), streamed=False)


class _Writer:
    """Files of columns that grow, in a folder that appears under its name when it is complete."""

    def __init__(self, entry: Path, stack: ExitStack):
        self._entry, self._stack = entry, stack
        self._growing = entry.with_name(f"{entry.name}.tmp")
        self._files: dict[str, Any] = {}
        self.is_open = False

    def write(self, parts: Mapping[str, list[np.ndarray]], what: str) -> None:
        """Append to each column."""
        try:
            if not self.is_open:
                self._open(what)
            for name, values in parts.items():
                if name not in self._files:
                    file = (self._growing / f"{name}.i32").open("wb")
                    self._files[name] = self._stack.enter_context(file)
                for array in values:
                    self._files[name].write(array.data)
        except OSError as error:
            raise OSError(
                f"tokens of {what} cannot be written to {self._entry.parent}: {error}; write data.cache_dir=DIR, a "
                f"folder on a disk with room, or a larger data.max_in_memory_bytes"
            ) from error

    def _open(self, what: str) -> None:
        self._entry.parent.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(FileLock(self._entry.with_name(f"{self._entry.name}.lock")))
        # The lock is held: a folder of this name can only be what a killed process left.
        shutil.rmtree(self._growing, ignore_errors=True)
        self._growing.mkdir()
        self._stack.callback(shutil.rmtree, self._growing, ignore_errors=True)
        self.is_open = True
        logger.info("writing the tokens of %s once into %s", what, self._entry)

    def close(self, more: Mapping[str, np.ndarray], notices: list[Notice]) -> None:
        """Put the folder in its place."""
        for file in self._files.values():
            file.close()
        np.savez(self._growing / _REST, **more)  # pyright: ignore[reportArgumentType]
        told = [asdict(notice) | {"examples": list(notice.examples)} for notice in notices]
        (self._growing / _NOTICES).write_text(json.dumps(told))
        if self._entry.exists():  # damaged, or made by another process in the meantime
            shutil.rmtree(self._entry)
        self._growing.rename(self._entry)


def _mapped(entry: Path) -> Sequences | None:
    """What was kept, or None where nothing is, or it is not whole."""
    if not entry.is_dir():
        return None
    try:
        with np.load(entry / _REST) as arrays:
            more = {name: arrays[name] for name in arrays.files}
        told = json.loads((entry / _NOTICES).read_text())
        notices = tuple(Notice(**{**one, "examples": tuple(one["examples"])}) for one in told)
        total, columns = int(more["lengths"].sum()), {}
        for file in sorted(entry.glob("*.i32")):
            if file.stat().st_size != 4 * total:
                raise ValueError(f"{file.name} has {file.stat().st_size} bytes, not {4 * total}")
            # written to by nobody; a mapping that is only readable would make torch warn
            columns[file.stem] = torch.from_numpy(np.memmap(file, np.int32, mode="c"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("kept tokens %s are not used, and made again: %s", entry, error)
        return None
    return _sequences(columns, more, notices, streamed=True)


def _sequences(
    columns: Mapping[str, Tensor],
    more: Mapping[str, np.ndarray],
    notices: tuple[Notice, ...],
    *,
    streamed: bool,
) -> Sequences:
    rest = {name: torch.from_numpy(values) for name, values in more.items()}
    lengths = rest.pop("lengths")
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Sequences(columns, offsets, rest, notices, streamed)
