"""Whether the folder that runs go to can be written, found out without leaving anything there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from compresskd.config.faults import Fault
from compresskd.options import shown
from compresskd.run import Foreign, check_ours

_ROOM = "x/" * 150  # of a path, for the run's own folder and the files in it
_NAMED = ("hydra.run.dir", "hydra.sweep.dir")


def output_faults(overrides: Sequence[str], outputs_dir: str) -> Iterator[Fault]:
    """A fault for each folder that cannot be written, or cannot be made where it is to be."""
    pairs = [line.partition("=")[::2] for line in overrides]
    named = {key: value.strip("'\"") for key, value in pairs if key in _NAMED and "${" not in value}
    for key, folder in (named or {"outputs_dir": outputs_dir}).items():
        if not folder:
            yield Fault(key, f"got nothing; write {key}=DIR")
            continue
        try:
            _check_writable(Path(folder).absolute())
            if key == "hydra.run.dir":  # ahead of Hydra, which may write its own files there
                check_ours(Path(folder).absolute())
        except Foreign as error:
            yield Fault(key, str(error))
        except (OSError, ValueError) as error:  # a name with a null character is a ValueError
            reason = getattr(error, "strerror", None) or error
            yield Fault(key, f"got {shown(folder)}, which cannot be written ({reason}); write {key}=DIR")


def _check_writable(folder: Path) -> None:
    """Raise OSError where nothing can be written in `folder`, there already or to be made."""
    existing = next(p for p in (folder, *folder.parents) if p.is_symlink() or p.exists())
    for name in (*folder.relative_to(existing).parts, f"{folder}/{_ROOM}"):  # is any of them too long?
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(existing / name)
    if not existing.exists():
        raise OSError(0, f"{existing} is a link to what is not there")
    if not existing.is_dir():
        raise OSError(0, f"{existing} is a file")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise OSError(error.errno, f"{existing}: {error.strerror}") from error
