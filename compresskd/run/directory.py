"""A run directory that this process holds: exclusive opening, the record, the metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from compresskd.run.errors import AlreadyFinished, InUse, RunDirectoryError
from compresskd.run.files import remove_leftovers, write_text
from compresskd.run.lock import acquire, describe_owner, release
from compresskd.run.record import FINISHED, RECORD, RUNNING, Record, changed_data, read_record


class Run:
    """One run directory, held exclusively by this process between `open_run` and `close`."""

    def __init__(self, directory: Path, lock: FileLock, record: Record | None):
        self.directory = directory
        self._lock = lock
        self.record = record
        self.sign: Callable[[Record], dict[str, Any] | None] | None = None  # what the record is signed by
        self._opened = time.perf_counter()
        self._seconds_before = 0.0 if record is None else record.wall_seconds

    @property
    def resumed(self) -> bool:
        """Whether the directory already held an unfinished record when it was opened."""
        return self.record is not None

    @property
    def checkpoints(self) -> Path:
        """Folder of the stages' checkpoints."""
        return self.directory / "checkpoints"

    @property
    def wall_seconds(self) -> float:
        """Seconds that processes have worked on this run, up to now."""
        return self._seconds_before + time.perf_counter() - self._opened

    def recall_seconds(self, wall_seconds: float) -> None:
        """Count from `wall_seconds`, which a checkpoint holds, where the killed process recorded fewer."""
        self._seconds_before = max(self._seconds_before, wall_seconds)

    def start(self, record: Record) -> None:
        """Write the first record of a new run, or go on with the one that is there.

        Raises:
            RunDirectoryError: the run there was begun on other data.
        """
        now = _now()
        if self.record is None:
            self.record = record
            self.record.created = now
        else:
            self._check_same_data(record)
            self.record.resumed.append({"at": now, **self.record.changed_surroundings(record)})
        self.record.status, self.record.error = RUNNING, None
        self.save()

    def save(self) -> None:
        """Write `record.json` atomically."""
        if self.record is None:
            raise RunDirectoryError(f"{self.directory}: nothing to save before start()")
        self.record.updated, self.record.wall_seconds = _now(), self.wall_seconds
        if self.sign is not None:
            self.record.signature = self.sign(self.record)
        write_text(self.directory / RECORD, json.dumps(asdict(self.record), indent=1) + "\n")

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one epoch's line to `metrics.jsonl`."""
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind_metrics(self, stage: str, num_epochs: int, finished: set[str]) -> None:
        """Drop what a killed process wrote past its last checkpoint, so that resuming repeats nothing.

        Keeps the lines of the stages in `finished` and the first `num_epochs` epochs of `stage`.
        """
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _is_kept(line, stage, num_epochs, finished)]
        if kept != lines:
            write_text(path, "".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        """Let other processes have the directory."""
        finished = self.record is not None and self.record.status == FINISHED
        release(self.directory, self._lock, for_good=finished)

    def _check_same_data(self, record: Record) -> None:
        assert self.record is not None
        changed = changed_data(self.record, record)
        if changed:
            raise RunDirectoryError(
                f"{self.directory} was begun on other data ({changed}); "
                "put the data back as it was, or write another hydra.run.dir=DIR"
            )


def open_run(directory: Path, *, unique: bool = False, wait: float = 0.0) -> Run:
    """Take `directory` for this process.

    Args:
        directory: created where it is missing.
        unique: the name was made up by the program, so where it is taken `directory_2`, `directory_3`...
            is taken instead. Without it an unfinished run found there is gone on with.
        wait: seconds to wait for another process that holds it; -1 waits for ever.

    Raises:
        InUse: another process is writing there.
        AlreadyFinished: the run there is finished.
        RunDirectoryError: the record there is unreadable, or the directory cannot be written.
    """
    if not unique:
        return _open(directory, wait)
    number, candidate = 1, directory
    while True:
        try:
            run = _open(candidate, 0.0)
            if not run.resumed:
                return run
            run.close()
        except (InUse, AlreadyFinished):
            pass
        number += 1
        candidate = directory.with_name(f"{directory.name}_{number}")


def _open(directory: Path, wait: float) -> Run:
    _refuse_finished(directory)  # before it is locked: a finished run is not touched at all
    lock = acquire(directory, wait)
    if lock is None:
        raise InUse(
            f"{directory} is in use by another process ({describe_owner(directory)}); "
            "wait for it, or write another hydra.run.dir=DIR"
        )
    try:
        _refuse_finished(directory)  # again: it may have finished since, or while this process waited
        record = read_record(directory) if (directory / RECORD).exists() else None
    except RunDirectoryError as error:
        release(directory, lock, for_good=isinstance(error, AlreadyFinished))
        raise
    for folder in (directory, directory / "checkpoints"):
        remove_leftovers(folder)
    return Run(directory, lock, record)


def _refuse_finished(directory: Path) -> None:
    if (directory / RECORD).exists() and read_record(directory).status == FINISHED:
        raise AlreadyFinished(
            f"{directory} holds a finished run, which is never overwritten; "
            "write another hydra.run.dir=DIR, or remove that folder"
        )


def _is_kept(line: str, stage: str, num_epochs: int, finished: set[str]) -> bool:
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return False  # the torn last line of a killed process
    return values["stage"] in finished or (values["stage"] == stage and values["epoch"] < num_epochs)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
