"""Which folders are ours to write in, and which of the things in them.

A folder is a run's where it is missing or empty, where its record.json is a record, or where it holds nothing but
what a run leaves that was killed before it wrote one. In a run's folder nothing is written, deleted or read through a
link, and nothing that is no ordinary file is opened: what lies behind it is not the run's.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from compresskd.run.errors import Foreign, RunDirectoryError
from compresskd.run.files import LEFTOVERS

RECORD, LOCK, OWNER = "record.json", "run.lock", "run.owner"
METRICS, PREDICTIONS, LOG, TRACKERS = "metrics.jsonl", "predictions.npz", "log.txt", "trackers.json"
CHECKPOINTS, MODEL, EXPORT, EVENTS = "checkpoints", "model", "export", "tensorboard"
_FILES = (RECORD, LOCK, OWNER, METRICS, PREDICTIONS, LOG, TRACKERS, "config.yaml", "overrides.yaml")
_FOLDERS = (CHECKPOINTS, MODEL, EXPORT, EVENTS)
_HYDRAS = ".hydra"  # made ahead of the run where the user sets hydra.output_subdir


def check_ours(directory: Path) -> None:
    """See that a run may write in `directory`, and that nothing in it leads elsewhere.

    Raises:
        Foreign: it holds files, and they are no run's.
        RunDirectoryError: a link, or no ordinary file or folder, in place of something that a run writes.
    """
    try:
        with os.scandir(directory) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to {directory}: {error.strerror or error}; "
            "write another outputs_dir=DIR or hydra.run.dir=DIR"
        ) from error
    if not any(entry.name == RECORD for entry in entries):
        foreign = sorted(entry.name for entry in entries if not _before_the_record(entry))
        if foreign:
            shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
            raise Foreign(
                f"{directory} is not empty and is no run of compresskd (it holds {shown}); nothing in it was "
                "touched; write another hydra.run.dir=DIR, which is empty or not there"
            )
    for path, is_folder in _ours(directory):
        check_kind(path, folder=is_folder)


def check_kind(path: Path, *, folder: bool = False) -> None:
    """Refuse what is neither missing nor an ordinary file (or `folder`) itself.

    Raises:
        RunDirectoryError: a link, a device, a pipe, a folder in place of a file or a file in place of a folder.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    if stat.S_ISLNK(mode):
        raise RunDirectoryError(
            f"{path} is a link, and links are not followed out of a run; put what it holds there"
        )
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise RunDirectoryError(f"{path} is no ordinary {'folder' if folder else 'file'}; remove it")


def _before_the_record(entry: os.DirEntry[str]) -> bool:
    """Whether a run that was killed before its record, or Hydra ahead of the run, may have left this."""
    about = entry.stat(follow_symlinks=False)
    if entry.name == _HYDRAS:
        return stat.S_ISDIR(about.st_mode)
    if not stat.S_ISREG(about.st_mode):
        return False
    if entry.name in (LOCK, OWNER):
        return about.st_size < 4096  # bytes; the lock is empty, the owner one line
    hydras_log = entry.name.endswith(".log") and about.st_size == 0
    return hydras_log or fnmatch.fnmatch(entry.name, LEFTOVERS)


def _ours(directory: Path) -> Iterator[tuple[Path, bool]]:
    """What a run writes in its folder, and whether it is a folder."""
    for name in _FILES:
        yield directory / name, False
    for name in _FOLDERS:
        yield directory / name, True
