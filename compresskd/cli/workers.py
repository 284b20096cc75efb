"""The worker processes of a parallel sweep: when one is killed its job has failed, and the others go on.

Joblib ends the whole pool when one of its workers dies, and says neither which one it was nor what it was doing.
Each worker therefore notes its job in a folder while it works on it, and the parent watches these processes:
the kernel tells it of the first death before the pool can react by ending the rest.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from compresskd.run import FAILED, RunDirectoryError, open_run

KILLED = "its worker process was killed from outside (by a signal, or for want of memory)"
_SECONDS = 0.1  # between two looks for workers that have taken up a job


@contextlib.contextmanager
def busy(notes: str, directory: Path) -> Iterator[None]:
    """Note, in a worker, that this process works on the job of `directory`."""
    note = Path(notes, str(os.getpid()))
    with contextlib.suppress(OSError):  # a worker on another machine, which does not see the folder
        note.write_bytes(os.fsencode(directory))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


class Watch:
    """Watches the workers that take notes in `notes`, from `with` to its end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="compresskd-")
        self.notes = self._folder.name
        self._dead: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._folder.cleanup()

    def lost(self) -> set[Path]:
        """The job of the worker that died first; of all that were at work where nothing tells which it was."""
        self._ended.set()
        self._thread.join()
        at_work = {
            int(note.name): Path(os.fsdecode(note.read_bytes())) for note in Path(self.notes).iterdir()
        }
        culprits = self._dead & at_work.keys() or at_work.keys()
        return {at_work[process] for process in culprits}

    def _watch(self) -> None:
        poller = select.poll()
        processes: dict[int, int] = {}  # file descriptor -> process
        try:
            while not self._ended.is_set() and not self._dead:
                for process in set(map(int, os.listdir(self.notes))) - set(processes.values()):
                    with contextlib.suppress(OSError, AttributeError):  # gone already; a system without pidfd
                        descriptor = os.pidfd_open(process)
                        processes[descriptor] = process
                        poller.register(descriptor, select.POLLIN)
                for descriptor, _ in poller.poll(1000 * _SECONDS):
                    poller.unregister(descriptor)
                    if Path(
                        self.notes, str(processes[descriptor])
                    ).exists():  # it ended in the middle of a job
                        self._dead.add(processes[descriptor])
        finally:
            for descriptor in processes:
                os.close(descriptor)


def record_loss(directory: Path) -> None:
    """Write into a job's record, where it has one, that it failed because its process was killed."""
    try:
        run = open_run(directory)
    except RunDirectoryError:
        return  # it had not begun, or is wrong in a way of its own, which the end of the sweep tells
    try:
        if run.record is not None:
            run.record.status = FAILED
            run.record.error = {"type": "WorkerKilled", "message": KILLED, "traceback": ""}
            run.save()
    finally:
        run.close()
