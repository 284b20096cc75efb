"""Files and folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from compresskd.run.errors import RunDirectoryError

_SUFFIX = ".compresskd-tmp"
LEFTOVERS = f".*{_SUFFIX}"
_DIGEST_SIZE = hashlib.sha256().digest_size
_MAGIC = b"compresskd-checkpoint-1\n"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it replaces `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder; it takes the place of the folder `path` when the block ends well.

    A kill while the old folder gives way to the new one may leave neither at `path`, never a mixture.

    Raises:
        RunDirectoryError: there is a link or a file at `path`, or a folder with what the new one has not: it is
            somebody else's, and stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        _check_replaceable(path, {file.name for file in temporary.iterdir()})
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files and folders that a killed process left in `directory`."""
    for path in directory.glob(LEFTOVERS):
        _remove(path)


def remove_leftovers_of(path: Path) -> None:
    """Remove what killed processes left beside `path` of attempts to write it."""
    if not path.parent.is_dir():
        return
    name = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}" + re.escape(_SUFFIX))
    for leftover in list(path.parent.iterdir()):
        if name.fullmatch(leftover.name) and not leftover.is_symlink():
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_checked(path: Path, payload: bytes) -> None:
    """Write bytes atomically behind a magic line and their SHA-256, for `read_checked`."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(payload).digest())
        file.write(payload)


def read_checked(path: Path) -> bytes:
    """Read what `write_checked` wrote. Raises RunDirectoryError where a byte of it changed."""
    content = read_bytes(path)
    head = len(_MAGIC) + _DIGEST_SIZE
    if content[: len(_MAGIC)] != _MAGIC or len(content) < head:
        raise RunDirectoryError(f"{path} is not a training checkpoint; remove it to repeat the stage")
    payload = content[head:]
    if hashlib.sha256(payload).digest() != content[len(_MAGIC) : head]:
        raise RunDirectoryError(
            f"{path} is damaged (its SHA-256 does not match); remove it to repeat the stage from its start"
        )
    return payload


def read_bytes(path: Path, *, at_most: int | None = None) -> bytes:
    """The content of an ordinary file, which is no link; nothing else is opened, or waited for.

    Raises:
        OSError: it is not there, or may not be read.
        RunDirectoryError: it is no ordinary file, or has more than `at_most` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if at_most is not None and size > at_most:
            raise RunDirectoryError(f"{path} is too large: {size:,} bytes, expected at most {at_most:,}")
        return file.read(size)


def open_regular(path: Path) -> BufferedReader:
    """Open an ordinary file for reading; errors as `read_bytes`'."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        number = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunDirectoryError(f"{path} is a link: expected the file itself") from None
        raise
    file = os.fdopen(number, "rb") if stat.S_ISREG(os.fstat(number).st_mode) else None
    if file is None:
        os.close(number)
        raise RunDirectoryError(f"{path} is no file")
    return file


def unlinked(path: Path) -> Path:
    """`path`, made a file of its own where it has other names too: what is appended would grow those as well."""
    if path.exists() and path.stat().st_nlink > 1:
        with atomic(path) as temporary:
            shutil.copyfile(path, temporary)
    return path


def _check_replaceable(path: Path, names: set[str]) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RunDirectoryError(f"{path} is no folder, and is not replaced; remove it, or write elsewhere")
    others = sorted({file.name for file in path.iterdir()} - names) if path.exists() else []
    if others:
        raise RunDirectoryError(
            f"{path} holds {', '.join(others[:3])}, which is no part of a model: the folder is not replaced; "
            "move that away, or write elsewhere"
        )


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
