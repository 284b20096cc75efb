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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from compresskd.run.errors import Lost, RunDirectoryError
from compresskd.run.files import read_bytes, write_text
from compresskd.run.ownership import LOCK, OWNER

if TYPE_CHECKING:  # it takes asyncio with it; whoever only reads records does not wait for that
    from filelock import FileLock

_MAX_OWNER = 4096  # bytes
_SECONDS_TO_SIGN = 1.0  # the holder signs right after it has the lock; readers grant it that long


@dataclass(frozen=True)
class Hold:
    """A directory that this process holds, by the file that is locked."""

    directory: Path
    lock: FileLock
    identity: tuple[
        int, int
    ]  # of that file: where another one is at its path, the lock guards nothing any more

    def check(self) -> None:
        """Raise Lost where the directory, or the lock in it, is no longer the one that was taken."""
        if _identity(self.directory / LOCK) != self.identity:
            what = f"{LOCK} in it was removed or replaced" if self.directory.is_dir() else "it was removed"
            raise Lost(
                f"{self.directory} is no longer held by this process: {what} while the run was going on; the run stops "
                f"here and writes nothing more. If the folder is still there, resume it by: compresskd resume "
                f"{self.directory}"
            )

    def release(self, *, for_good: bool) -> None:
        """Release the lock. With `for_good`, delete the lock files too: nobody will write there again."""
        with contextlib.suppress(OSError):
            if _identity(self.directory / LOCK) == self.identity:
                (self.directory / OWNER).unlink(missing_ok=True)
                if for_good:  # who waits for the removed file gets it, and finds a finished run
                    (self.directory / LOCK).unlink(missing_ok=True)
        self.lock.release()


def acquire(directory: Path, wait: float) -> Hold | None:
    """Hold `directory`, which is created where it is missing; None where another process still holds it.

    wait: seconds to wait for it; -1 waits for ever.
    Raises RunDirectoryError where the directory cannot be written, or lies on a file system without locks.
    """
    from filelock import Timeout

    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_lock(path)
        while True:
            lock = _locked(path, wait)
            about = os.fstat(lock._context.lock_file_fd)  # pyright: ignore[reportArgumentType]
            identity = about.st_dev, about.st_ino
            if identity == _identity(path):
                break
            lock.release()  # who waited may get a file that has been removed meanwhile
    except Timeout:
        return None
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to {directory}: {error.strerror or error}; "
            "write another outputs_dir=DIR or hydra.run.dir=DIR"
        ) from error
    with contextlib.suppress(OSError):
        write_text(
            directory / OWNER,
            f"process {os.getpid()} on {socket.gethostname()} "
            f"since {datetime.now(UTC).isoformat(timespec='seconds')}",
        )
    return Hold(directory, lock, identity)


def is_held(directory: Path) -> bool:
    """Whether the process that signed last in `directory` may still run there, without a touch of the lock."""
    with contextlib.suppress(OSError, RunDirectoryError):
        return _may_be_alive(read_bytes(directory / OWNER, at_most=_MAX_OWNER).decode("utf-8", "replace"))
    return False


def describe_owner(directory: Path) -> str:
    """Say which process holds `directory`, for messages; call it where the lock is known to be held."""
    deadline = time.monotonic() + _SECONDS_TO_SIGN
    owner = ""
    while not _may_be_alive(owner) and time.monotonic() < deadline:
        time.sleep(0.02)
        with contextlib.suppress(OSError, RunDirectoryError):
            owner = read_bytes(directory / OWNER, at_most=_MAX_OWNER).decode("utf-8", "replace")
    return owner or "a process that has not given its name"


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at `path`; None where there is none."""
    try:
        about = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _check_lock(path: Path) -> None:
    """Refuse a file with content, which locking would cut to nothing, and one that is another folder's lock too."""
    about = path.stat() if path.exists() else None
    if about is not None and (about.st_size > 0 or about.st_nlink > 1):
        what = "it has content" if about.st_size > 0 else "the same file has other names too"
        raise RunDirectoryError(
            f"{path} is no lock of this run ({what}); remove it where no process runs here"
        )


def _locked(path: Path, wait: float) -> FileLock:
    from filelock import FileLock, SoftFileLock

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
