"""A run directory that this process holds: exclusive opening, the record, the metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compresskd.run.errors import AlreadyFinished, Foreign, InUse, RunDirectoryError
from compresskd.run.files import remove_leftovers, unlinked, write_text
from compresskd.run.lock import Hold, acquire, describe_owner
from compresskd.run.metrics import read_metrics
from compresskd.run.ownership import CHECKPOINTS, METRICS, RECORD, check_kind, check_ours
from compresskd.run.record import FINISHED, RUNNING, Record, changed_data, plain, read_record


class Run:
    """One run directory, held exclusively by this process between `open_run` and `close`."""

    def __init__(self, directory: Path, hold: Hold, record: Record | None):
        self.directory = directory
        self._hold = hold
        self.record = record
        self.sign: Callable[[Record], dict[str, Any] | None] | None = None  # what the record is signed by
        self._opened = time.perf_counter()
        self._seconds_before = 0.0 if record is None else record.wall_seconds

    @property
    def resumed(self) -> bool:
        """Whether the directory already held an unfinished record when it was opened."""
        return self.record is not None

    def place(self, name: str) -> Path:
        """Where a file or folder of the run (`checkpoints/distill`) is, which is about to be written or removed.

        Raises:
            Lost: the directory is no longer this process's.
            RunDirectoryError: a link stands on the way, or something that is no file or folder.
        """
        self._hold.check()
        path, (*folders, last) = self.directory, name.split("/")
        for folder in folders:
            path /= folder
            check_kind(path, folder=True)
        path /= last
        check_kind(path, folder=path.is_dir())
        return path

    def open_to_append(self, name: str) -> Path:
        """`place` of a file that is written on, made this run's alone where it has other names (hard links)."""
        return unlinked(self.place(name))

    @property
    def wall_seconds(self) -> float:
        """Seconds that processes have worked on this run, up to now."""
        return self._seconds_before + time.perf_counter() - self._opened

    def recall_seconds(self, wall_seconds: float) -> None:
        """Count from `wall_seconds`, which a checkpoint holds, where the killed process recorded fewer."""
        self._seconds_before = max(self._seconds_before, wall_seconds)

    def start(self, record: Record) -> None:
        """Write the first record of a new run, or resume the one that is there.

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
        text = json.dumps(plain(asdict(self.record)), indent=1, allow_nan=False)
        write_text(self.place(RECORD), text + "\n")

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one epoch's line to `metrics.jsonl`."""
        with self.open_to_append(METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")

    def rewind_metrics(self, stage: str, num_epochs: int, finished: set[str]) -> None:
        """Drop what a killed process wrote past its last checkpoint, so that resuming repeats nothing.

        Keeps the lines of the stages in `finished` and the first `num_epochs` epochs of `stage`.
        """
        path = self.place(METRICS)
        if not path.exists():
            return
        kept = [
            line
            for line in read_metrics(path)
            if line["stage"] in finished or (line["stage"] == stage and line["epoch"] < num_epochs)
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in kept)
        if len(text) != path.stat().st_size:
            write_text(path, text)

    def close(self) -> None:
        """Let other processes have the directory."""
        finished = self.record is not None and self.record.status == FINISHED
        self._hold.release(for_good=finished)

    def _check_same_data(self, record: Record) -> None:
        assert self.record is not None
        changed = changed_data(self.record, record)
        if changed:
            raise RunDirectoryError(
                f"{self.directory} was begun on other data ({changed}); "
                "put the data back as it was, or write another hydra.run.dir=DIR"
            )


class Followed(Run):
    """A run directory that another process holds, as seen by one that works with it: nothing is written."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.record, self.sign = None, None
        self._opened, self._seconds_before = time.perf_counter(), 0.0

    def place(self, name: str) -> Path:
        """Raise RuntimeError: only the process that holds the directory writes in it."""
        raise RuntimeError(
            f"{self.directory / name} is to be written by a process that does not hold the run"
        )

    def save(self) -> None:
        """Leave it to the process that holds the run."""

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Leave it to the process that holds the run."""

    def rewind_metrics(self, stage: str, num_epochs: int, finished: set[str]) -> None:
        """Leave it to the process that holds the run."""

    def close(self) -> None:
        """Nothing is held."""


def open_run(directory: Path, *, unique: bool = False, wait: float = 0.0) -> Run:
    """Take `directory` for this process.

    Args:
        directory: created where it is missing.
        unique: the name was made up by the program, so where it is taken `directory_2`, `directory_3`...
            is taken instead. Without it an unfinished run found there is resumed.
        wait: seconds to wait for another process that holds it; -1 waits for ever.

    Raises:
        InUse: another process is writing there.
        AlreadyFinished: the run there is finished.
        Foreign: the directory holds files, and they are no run's; none of them has been touched.
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
        except (InUse, AlreadyFinished, Foreign):
            pass
        number += 1
        candidate = directory.with_name(f"{directory.name}_{number}")


def _open(directory: Path, wait: float) -> Run:
    _check_usable(
        directory
    )  # before it is locked: a folder that is not to be written in is not touched at all
    hold = acquire(directory, wait)
    if hold is None:
        raise InUse(
            f"{directory} is in use by another process ({describe_owner(directory)}); "
            "wait for it, or write another hydra.run.dir=DIR"
        )
    try:
        record = _check_usable(directory)  # again: it may have finished since, or while this process waited
    except RunDirectoryError as error:
        hold.release(for_good=isinstance(error, AlreadyFinished))
        raise
    for folder in (directory, directory / CHECKPOINTS):
        remove_leftovers(folder)
    return Run(directory, hold, record)


def _check_usable(directory: Path) -> Record | None:
    """The record of the unfinished run in a folder that is ours; None where none is there yet."""
    check_ours(directory)
    record = read_record(directory) if (directory / RECORD).exists() else None
    if record is not None and record.status == FINISHED:
        raise AlreadyFinished(
            f"{directory} holds a finished run, which is never overwritten; "
            "write another hydra.run.dir=DIR, or remove that folder"
        )
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
