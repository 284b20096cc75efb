"""Which files a run wrote: their sizes and SHA-256, kept in the record and checked before the files are used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compresskd.run.errors import RunDirectoryError
from compresskd.run.files import open_regular

Fingerprints = dict[str, dict[str, Any]]


def fingerprints(directory: Path, folder: str) -> Fingerprints:
    """`bytes` and `sha256` of every file in DIRECTORY/FOLDER, by its path below `directory`."""
    return {f"{folder}/{path.name}": _fingerprint(path) for path in sorted((directory / folder).iterdir())}


def changes(directory: Path, recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is not as `fingerprints` recorded it, in words that begin with the file; empty where all is."""
    return list(_changes(directory, recorded))


def _changes(directory: Path, recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    folders = sorted({directory / name.rpartition("/")[0] for name in recorded})
    paths = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    for name, values in recorded.items():
        path = directory / name
        if path not in paths or path.parent.is_symlink():
            yield f"{path} is missing"
            continue
        try:
            found = _fingerprint(path)
        except RunDirectoryError as error:
            yield str(error)
            continue
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror or error}"
            continue
        if found != values:
            yield (
                f"{path} is not the file that was recorded ({found['bytes']:,} bytes, SHA-256 {found['sha256'][:12]}; "
                f"recorded: {values.get('bytes')} bytes, {str(values.get('sha256'))[:12]})"
            )
    for path in paths:
        if path.relative_to(directory).as_posix() not in recorded:
            yield f"{path} is not in the record"


def _fingerprint(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
