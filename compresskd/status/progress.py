"""How far a run is, from its record, log, metrics and owner. Nothing is written, and no lock is touched."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskd.metric import Metric
from compresskd.run import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RECORD,
    RUNNING,
    Record,
    RunDirectoryError,
    read_record,
)
from compresskd.run.lock import is_held
from compresskd.run.ownership import LOG, METRICS

KILLED, DAMAGED = "killed", "damaged"  # states that no record says of itself
STATES = (RUNNING, FAILED, KILLED, INTERRUPTED, DAMAGED, FINISHED)
_STAGE = re.compile(r"^\S+ \S+ (teacher: )?stage (\d+)/(\d+): (.+)$")
_EPOCH = re.compile(r"^\S+ \S+ (teacher: )?epoch +(\d+)/(\d+)  .* ([\d.]+) s$")
_FEW = 5  # epochs whose mean time tells how long the next ones take


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        state: one of `STATES`.
        stage: the name of the running or last stage; `number` of them are begun, of `stages` in all (0: not known).
        epoch: how many have ended, of `epochs` in the stage.
        value, best: the metric that selects, on validation, now and at its best in this stage.
        seconds_left: until all stages have trained, at the pace of now; None where nothing tells.
        note: what went wrong.
        updated: when the record was written, by the clock of the file system.
    """

    directory: Path
    state: str
    stage: str = ""
    number: int = 0
    stages: int = 0
    epoch: int = 0
    epochs: int = 0
    monitor: Metric | None = None
    value: float | None = None
    best: float | None = None
    seconds_left: float | None = None
    note: str = ""
    updated: float = 0.0


@dataclass
class Grown:
    """A text file that grows: each look gives the whole lines since the one before."""

    path: Path
    _identity: int = 0
    _offset: int = 0

    def lines(self) -> tuple[list[str], bool]:
        """The new lines, and whether they are of another file: one that was written anew or cut."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                anew = about.st_ino != self._identity or about.st_size < self._offset
                self._identity, self._offset = about.st_ino, 0 if anew else self._offset
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return [], False
        whole = content[: content.rfind(b"\n") + 1]  # the last one may be torn
        self._offset += len(whole)
        return whole.decode("utf-8", "replace").splitlines(), anew


@dataclass
class Watched:
    """One run directory, looked at again and again: only what has changed since is read."""

    directory: Path
    _log: Grown = field(init=False)
    _metrics: Grown = field(init=False)
    _written: tuple[int, int] = (0, 0)
    _record: Record | None = None
    _fault: str = ""
    _last: Progress | None = None
    _rows: list[dict[str, Any]] = field(default_factory=list)  # epochs of the last stage
    _stage: tuple[str, str, str, str] = ("", "0", "0", "")  # teacher?, number, in all, name
    _epoch: tuple[str, str, str, str] | None = None  # teacher?, number, in all, seconds

    def __post_init__(self) -> None:
        self._log, self._metrics = Grown(self.directory / LOG), Grown(self.directory / METRICS)

    def look(self) -> Progress | None:
        """Where the run stands now; None where it has gone."""
        try:
            about = (self.directory / RECORD).stat()
        except OSError:
            return None
        written = about.st_mtime_ns, about.st_size
        if (
            written == self._written
            and self._last is not None
            and self._last.state in (FINISHED, FAILED, DAMAGED)
        ):
            return self._last
        if written != self._written:
            self._written = written
            try:
                self._record, self._fault = read_record(self.directory), ""
            except RunDirectoryError as error:
                self._record, self._fault = None, str(error)
        self._last = self._progress(about.st_mtime)
        return self._last

    def _progress(self, updated: float) -> Progress:
        record = self._record
        if record is None:
            return Progress(self.directory, DAMAGED, note=self._fault, updated=updated)
        state = record.status if record.status != RUNNING or is_held(self.directory) else KILLED
        if state == FINISHED:
            return self._finished(record, updated)
        self._read()
        note = "" if record.error is None else f"{record.error['type']}: {record.error['message']}"
        is_teacher, number, stages, name = self._stage
        epoch = self._epoch if self._epoch and self._epoch[0] == is_teacher else None
        values = [] if is_teacher else self._values(record.monitor, name)
        better = max if record.monitor.higher_is_better else min
        return Progress(
            self.directory,
            state,
            stage=f"{is_teacher}{name}",
            number=int(number),
            stages=int(stages),
            epoch=int(epoch[1]) if epoch else 0,
            epochs=int(epoch[2]) if epoch else 0,
            monitor=record.monitor,
            value=values[-1] if values else None,
            best=better(values) if values else None,
            seconds_left=self._left(record, epoch) if state == RUNNING else None,
            note=note,
            updated=updated,
        )

    def _finished(self, record: Record, updated: float) -> Progress:
        final = record.stage(record.final) or {}
        value = final.get("metrics", {}).get(f"validation_{record.monitor.name}")
        count, epochs = len(record.stages), int(final.get("epochs") or 0)
        return Progress(
            self.directory, FINISHED, record.final or "", count, count, epochs, epochs, record.monitor, value, value,
            updated=updated,
        )  # fmt: skip

    def _read(self) -> None:
        for line in self._log.lines()[0]:
            if found := _STAGE.match(line):
                self._stage, self._epoch = _groups(found), None
            elif found := _EPOCH.match(line):
                self._epoch = _groups(found)
        lines, anew = self._metrics.lines()
        self._rows = [] if anew else self._rows
        for row in map(_row, lines):
            if row is not None:
                same = self._rows and self._rows[-1]["stage"] == row["stage"]
                self._rows = [*self._rows, row] if same else [row]

    def _values(self, monitor: Metric, stage: str) -> list[float]:
        found = (row.get(f"validation_{monitor.name}") for row in self._rows if row["stage"] == stage)
        return [value for value in found if isinstance(value, int | float)]

    def _left(self, record: Record, epoch: Sequence[str] | None) -> float | None:
        """The epochs of this stage and of the later ones that say how many they have, at the pace of the last few."""
        if epoch is None:
            return None
        if epoch[0]:
            return (int(epoch[2]) - int(epoch[1])) * float(epoch[3])
        times = [row.get("seconds", 0.0) for row in self._rows[-_FEW:]] or [float(epoch[3])]
        later = sum(_later_epochs(record.config, self._stage[3]))
        return (int(epoch[2]) - int(epoch[1]) + later) * sum(times) / len(times)


def find_runs(roots: Sequence[Path], known: dict[Path, Watched]) -> list[Watched]:
    """Every run at or below some folders, which may not be there yet; what lies within a run's folder is its own.

    Args:
        known: of the look before, by folder; new ones are added.
    """
    folders = [folder for root in roots for folder in _below(root)]
    return [known.setdefault(folder, Watched(folder)) for folder in dict.fromkeys(folders)]


def _below(root: Path) -> Iterator[Path]:
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(OSError):  # it is not there yet, or not any more
            with os.scandir(folder) as found:
                entries = list(found)
            if any(entry.name == RECORD for entry in entries):
                yield Path(folder)
            else:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _groups(found: re.Match[str]) -> tuple[str, str, str, str]:
    first, second, third, fourth = found.groups()
    return first or "", second, third, fourth


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("stage"), str) else None


def _later_epochs(config: Mapping[str, Any], stage: str) -> Iterator[int]:
    """The epochs of the stages that come after one, where the configuration says them."""
    stages = (config.get("strategy") or {}).get("stages") or {}
    names = list(stages)
    for name in names[names.index(stage) + 1 :] if stage in names else ():
        node = stages[name]
        epochs = node.get("epochs") if isinstance(node, Mapping) else None
        quantizes = node.get("_target_", "").endswith(".Quantize") if isinstance(node, Mapping) else False
        if isinstance(epochs, int) and not (quantizes and config.get("bits") is None):
            yield epochs
