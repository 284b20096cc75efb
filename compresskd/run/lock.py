"""One process at a time writes in a run directory: `run.lock` is held by it, `run.owner` names it.

The kernel lets the lock go when its holder dies, however it dies; no lock is ever stale. Both files may stay in a
directory that nobody holds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from compresskd.run.errors import RunDirectoryError

LOCK, OWNER = "run.lock", "run.owner"
_SECONDS_TO_SIGN = 1.0  # the holder signs right after it has the lock; readers grant it that long


def acquire(directory: Path, wait: float) -> FileLock | None:
    """Hold `directory`, which is created where it is missing; None where another process still holds it.

    wait: seconds to wait for it; -1 waits for ever.
    Raises RunDirectoryError where the directory cannot be written, or lies on a file system without locks.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _locked(directory / LOCK, wait)
    except Timeout:
        return None
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to {directory}: {error.strerror or error}; "
            "write another outputs_dir=DIR or hydra.run.dir=DIR"
        ) from error
    with contextlib.suppress(OSError):
        (directory / OWNER).write_text(
            f"process {os.getpid()} on {socket.gethostname()} "
            f"since {datetime.now(UTC).isoformat(timespec='seconds')}"
        )
    return lock


def release(directory: Path, lock: FileLock, *, for_good: bool) -> None:
    """Let others have `directory`; `for_good` where nobody will write there again: then no trace stays."""
    with contextlib.suppress(OSError):
        (directory / OWNER).unlink(missing_ok=True)
        if for_good:  # who waits for the removed file gets it, and finds a finished run
            (directory / LOCK).unlink(missing_ok=True)
    lock.release()


def describe_owner(directory: Path) -> str:
    """Say which process holds `directory`, for messages; call it where the lock is known to be held."""
    deadline = time.monotonic() + _SECONDS_TO_SIGN
    owner = ""
    while not _may_be_alive(owner) and time.monotonic() < deadline:
        time.sleep(0.02)
        with contextlib.suppress(OSError):
            owner = (directory / OWNER).read_text()
    return owner or "a process that has not given its name"


def _locked(path: Path, wait: float) -> FileLock:
    lock = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the fallback, which is refused below
            lock.acquire(timeout=wait)
    except NotImplementedError:  # what older releases of filelock do instead of falling back
        raise _no_locks(path.parent) from None
    if isinstance(lock, SoftFileLock):  # a mere file, which outlives a killed holder
        lock.release()
        raise _no_locks(path.parent)
    return lock


def _no_locks(directory: Path) -> RunDirectoryError:
    return RunDirectoryError(
        f"{directory} lies on a file system without file locks (flock), which keep two runs apart; "
        "write another outputs_dir=DIR or hydra.run.dir=DIR"
    )


def _may_be_alive(owner: str) -> bool:
    """Whether the process that signed so still runs; one on another host may."""
    words = owner.split()
    if len(words) < 4 or not words[1].isdigit():  # half written
        return False
    if words[3] != socket.gethostname():
        return True
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True
