"""Runs that trackers follow: TensorBoard, MLflow, W&B, or one of your own.

metrics.jsonl and record.json stay the truth. A tracker gets what is in them and it does not have: as they grow, where
it is there from the start; all of it at once, where it is asked for later. So a resumed run leaves no gap, no point is
sent twice, and a run that has finished is followed by the same few lines of code.
"""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console

from compresskd.listeners.console import stages_table
from compresskd.listeners.several import Silent
from compresskd.listeners.tracker import Following, Job, Tracker
from compresskd.run import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
    Record,
    RunDirectoryError,
    check_kind,
    read_bytes,
    read_metrics,
    read_record,
    write_text,
)
from compresskd.run.flat import flatten
from compresskd.run.ownership import METRICS, MODEL, RECORD, TRACKERS
from compresskd.training import EpochRecord

TEACHER, FINAL = "teacher", "final"
_LONGEST = 250  # characters of a parameter's value; servers of MLflow before 2.8 take 500
_LARGEST_FILE = 2**20  # bytes of trackers.json
_NOT_PARAMETERS = ("tracker", "outputs_dir")


class Tracked(Silent):
    """Sends the events of a run to trackers, as far as they are theirs.

    The training of a teacher that this run sees to is followed in the same place, as `teacher/...`.

    Args:
        trackers: by name.
        note: gets what is to be said of trackers that fail.
    """

    def __init__(self, trackers: Mapping[str, Tracker], note: Callable[[str], None]):
        self._followers = [_Follower(name, tracker, note) for name, tracker in trackers.items()]
        self._stage, self._is_teacher = "", False

    def begin(self, directory: Path, record: Record) -> None:
        """Begin to follow, and send what is there already."""
        for follower in self._followers:
            if not self._is_teacher:
                follower.open(directory, record, Path(record.config["outputs_dir"]))
            follower.catch_up(directory, record, TEACHER if self._is_teacher else None)

    def stage(self, name: str, number: int, total: int) -> None:
        """What follows is of this stage."""
        self._stage = TEACHER if self._is_teacher else name

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """Send its values."""
        for follower in self._followers:
            follower.send_epoch(self._stage, epoch.row())

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """Send the results."""
        for follower in self._followers:
            follower.send_results(self._stage, entry)

    def of_teacher(self) -> Tracked:
        """Return a listener to the teacher's run, which is followed in the same place."""
        other = copy.copy(self)
        other._is_teacher = True
        return other

    def end(self, record: Record) -> None:
        """Send the final results, and close."""
        for follower in () if self._is_teacher else self._followers:
            follower.finish(record)


def follow_afterwards(
    directory: Path,
    record: Record,
    trackers: Mapping[str, Tracker],
    outputs: Path,
    note: Callable[[str], None],
) -> bool:
    """Send a run that goes on no more to trackers; what they have already is not sent again.

    Args:
        outputs: the folder of all outputs.
        note: gets what goes wrong.

    Returns:
        Whether all of them took it.
    """
    followers = [_Follower(name, tracker, note) for name, tracker in trackers.items()]
    teacher = record.teacher or {}
    place = Path(teacher.get("directory") or directory)
    for follower in followers:
        follower.open(directory, record, outputs)
        if teacher.get("source") == "trained" and (place / RECORD).exists():
            follower.catch_up(place, read_record(place), TEACHER)
        follower.catch_up(directory, record, None)
        follower.finish(record)
    return not any(follower.has_failed for follower in followers)


class _Follower:
    """One tracker of one run: what has been sent, and whether it has failed."""

    def __init__(self, name: str, tracker: Tracker, note: Callable[[str], None]):
        self._name, self._tracker, self._note = name, tracker, note
        self._directory = Path()
        self._following: Following | None = None
        self._sent: dict[str, set[int]] = {}  # epochs of each stage
        self._results: set[str] = set()  # of stages whose results are there
        self._is_new = True

    @property
    def has_failed(self) -> bool:
        """Whether it is not followed, or not any more."""
        return self._following is None

    def open(self, directory: Path, record: Record, outputs: Path) -> None:
        """Begin to follow, or go on where the run was followed before."""
        self._directory = directory.absolute()
        self._guarded(self._open, self._directory, record, outputs.absolute())

    def catch_up(self, directory: Path, record: Record, stage: str | None) -> None:
        """Send what a run's files hold and the tracker does not have; of a teacher's under the name `stage`."""
        if self._following is not None:
            self._guarded(self._catch_up, directory, record, stage)

    def send_epoch(self, stage: str, row: Mapping[str, Any]) -> None:
        """Send an epoch's values, unless they are there: the last ones of a killed process come again."""
        if self._following is not None and row["epoch"] not in self._sent.setdefault(stage, set()):
            self._guarded(self._send_epoch, stage, row)

    def send_results(self, stage: str, entry: Mapping[str, Any]) -> None:
        """Send what a stage came to."""
        if self._following is not None:
            self._guarded(self._send_results, f"{stage}/{FINAL}", entry)

    def finish(self, record: Record) -> None:
        """Send the final results, and close."""
        if self._following is not None:
            self._guarded(self._finish, record)

    def _open(self, directory: Path, record: Record, outputs: Path) -> None:
        named = _read_identities(directory)
        job = Job(
            _name_of(directory, outputs), directory, outputs, _parameters(record), named.get(self._name)
        )
        self._following = self._tracker.open(job)
        if self._following.identity != job.identity:
            text = json.dumps({**named, self._name: self._following.identity}, indent=1)
            write_text(directory / TRACKERS, f"{text}\n")
        self._is_new = self._following.identity != job.identity

    def _catch_up(self, directory: Path, record: Record, stage: str | None) -> None:
        path = directory / METRICS
        for row in read_metrics(path) if path.exists() else ():
            name = stage or row["stage"]
            if name not in self._sent:
                self._sent[name] = set(self._steps(f"{name}/train_loss"))
            self.send_epoch(name, row)
        for entry in record.stages:
            self.send_results(stage or entry["name"], entry)

    def _send_epoch(self, stage: str, row: Mapping[str, Any]) -> None:
        assert self._following is not None
        terms = {f"terms/{name}": value for name, value in row["terms"].items()}
        values = {k: v for k, v in row.items() if k not in ("stage", "epoch", "terms")} | terms
        self._following.log(_finite(stage, values), row["epoch"])
        self._sent[stage].add(row["epoch"])

    def _send_results(self, prefix: str, entry: Mapping[str, Any]) -> None:
        assert self._following is not None
        latency = {f"latency_{name}": ms for name, ms in (entry.get("latency_ms") or {}).items()}
        values = _finite(prefix, {**entry["metrics"], **entry["size"], **latency})
        if prefix not in self._results and not self._steps(next(iter(values))):
            self._following.log(values, 0)
        self._results.add(prefix)

    def _finish(self, record: Record) -> None:
        assert self._following is not None
        if record.teacher is not None:
            self._send_results(f"{TEACHER}/{FINAL}", record.teacher)
        final = record.stage(record.final) if record.status == FINISHED else None
        if final is not None:
            self._send_results(FINAL, final)
        files = [path for path in [self._directory / METRICS] if path.exists()]
        model = self._directory / MODEL / "model.ckd"
        if record.status == FINISHED and model.exists():
            size, most = model.stat().st_size, self._tracker.max_model_bytes
            files += [model] if size <= most else []
            if size > most > 0:
                key = f"tracker.{self._name}.max_model_bytes"
                self._note(f"{self._name}: model.ckd ({size:,} bytes) is not stored; {key} is {most:,}")
        status = INTERRUPTED if record.status == RUNNING else record.status  # of a killed process
        self._following.finish(status, _markdown(record), files)

    def _steps(self, name: str) -> Collection[int]:
        return () if self._is_new or self._following is None else self._following.steps(name)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call; where it fails, say so and stop following: nothing of a tracker is worth a run."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a library, which no user of a run can mend
                call(*arguments)
        except (Exception, SystemExit) as error:
            self._following = None
            said = (str(error).strip().splitlines() or [""])[0][:300]
            self._note(
                f"tracker {self._name}: {type(error).__name__}: {said}; the run goes on without it and loses nothing: "
                f"compresskd track {self._directory} --to {self._name} sends the rest afterwards"
            )


def _finite(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items()}


def _name_of(directory: Path, outputs: Path) -> str:
    return str(directory.relative_to(outputs)) if directory.is_relative_to(outputs) else directory.name


def _parameters(record: Record) -> dict[str, str]:
    flat = flatten({key: value for key, value in record.config.items() if key not in _NOT_PARAMETERS})
    shown = {
        key: value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…" for key, value in flat.items()
    }
    return {"strategy": record.strategy, **dict(sorted(shown.items()))}


def _read_identities(directory: Path) -> dict[str, str]:
    path = directory / TRACKERS
    check_kind(path)
    if not path.exists():
        return {}
    try:
        named = json.loads(read_bytes(path, at_most=_LARGEST_FILE))
    except (ValueError, RecursionError):
        named = None
    if not isinstance(named, dict) or not all(isinstance(value, str) for value in named.values()):
        raise RunDirectoryError(f"{path} is damaged; remove it to begin anew in every tracker")
    return named


def _markdown(record: Record) -> str:
    """The table that a run ends with."""
    table = stages_table(record)
    table.box, table.title, table.caption = box.MARKDOWN, None, None
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.strip() for line in console.file.getvalue().splitlines())
