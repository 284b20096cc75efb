"""Whether the folder that runs go to can be written, found out without leaving anything there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from compresskd.config.faults import Fault
from compresskd.run import Foreign, check_ours

_ROOM = 300  # bytes of a path for the run's own folder and the files in it
_LONGEST_SHOWN = 200
_NAMED = ("hydra.run.dir", "hydra.sweep.dir")


def output_faults(overrides: Sequence[str], outputs_dir: str) -> Iterator[Fault]:
    """A fault for each folder that cannot be written, or cannot be made where it is to be."""
    pairs = [line.partition("=")[::2] for line in overrides]
    named = {key: value.strip("'\"") for key, value in pairs if key in _NAMED and "${" not in value}
    for key, folder in (named or {"outputs_dir": outputs_dir}).items():
        if not folder:
            yield Fault(key, f"came nothing; write {key}=DIR")
            continue
        reason = _refusal(Path(folder).absolute())
        if reason:
            yield Fault(key, f"came {_shown(folder)}, which cannot be written ({reason}); write {key}=DIR")
        elif key == "hydra.run.dir":  # ahead of Hydra, which may write its own files there
            try:
                check_ours(Path(folder).absolute())
            except Foreign as error:
                yield Fault(key, str(error))


def _refusal(folder: Path) -> str:
    """Why nothing can be written in `folder`, there already or to be made; empty where it can."""
    existing = folder
    try:
        existing = next(p for p in (folder, *folder.parents) if p.is_symlink() or p.exists())
        _check_lengths(folder, existing)
        if not existing.exists():
            return f"{existing} is a link to what is not there"
        if not existing.is_dir():
            return f"{existing} is a file"
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        return f"{_shown(str(existing))}: {getattr(error, 'strerror', None) or error}"


def _check_lengths(folder: Path, existing: Path) -> None:
    """Raise OSError where a folder that is to be made has a name that the file system does not take.

    The longest path leaves room for what a run writes below.
    """
    while existing.is_symlink() or not existing.is_dir():
        existing = existing.parent
    longest_name, longest_path = os.pathconf(existing, "PC_NAME_MAX"), os.pathconf(existing, "PC_PATH_MAX")
    if len(os.fsencode(folder)) + _ROOM > longest_path or any(
        len(os.fsencode(part)) > longest_name for part in folder.parts
    ):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder))


def _shown(path: str) -> str:
    return path if len(path) <= _LONGEST_SHOWN else f"{path[:40]}... ({len(path)} characters)"
