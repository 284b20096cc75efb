"""Files and folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from compresskd.run.errors import RunDirectoryError

_SUFFIX = ".compresskd-tmp"
_LEFTOVERS = f".*{_SUFFIX}"
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
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files and folders that a killed process left in `directory`."""
    for path in directory.glob(_LEFTOVERS):
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
    if path.is_dir():
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
    content = path.read_bytes()
    head = len(_MAGIC) + _DIGEST_SIZE
    if content[: len(_MAGIC)] != _MAGIC or len(content) < head:
        raise RunDirectoryError(f"{path} is not a training checkpoint; remove it to repeat the stage")
    payload = content[head:]
    if hashlib.sha256(payload).digest() != content[len(_MAGIC) : head]:
        raise RunDirectoryError(
            f"{path} is damaged (its SHA-256 does not match); remove it to repeat the stage from its start"
        )
    return payload


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
