"""Where trials are handed out and come back: one at a time to each worker, noted before and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from compresskd.run import (
    FAILED,
    FINISHED,
    PRUNED,
    RUNNING,
    Record,
    RunDirectoryError,
    read_metrics,
    read_record,
)
from compresskd.run.ownership import METRICS
from compresskd.search.front import front
from compresskd.search.pruning import Pruning
from compresskd.search.quantities import figures, teacher_figures
from compresskd.search.space import Point
from compresskd.search.trials import GIVEN, SAME, Question, Search, Trial

_MOST_SAME = 100  # points in a row that turn out to be runs that are there already


class Proposer(Protocol):
    """What says which point is tried next."""

    def add(self, trial: Trial) -> None:
        """Take a trial that an earlier process has asked for, or a run of before."""

    def ask(self, number: int, spent: float) -> Point | None:
        """Return the point of trial `number`; None where there is nothing left to try, at least for now.

        spent: the share of the trials or minutes of the search that is over.
        """

    def tell(self, trial: Trial) -> None:
        """Take how a trial has ended."""


@dataclass(frozen=True)
class Prepared:
    """A point that has been composed and built.

    Attributes:
        folder: of its run, in the search's.
        identity: equal in points that are one run.
        job: what runs it, as whoever prepared it wants.
    """

    folder: str
    identity: str
    job: Any


@dataclass
class Desk:
    """A search while it goes on.

    Attributes:
        prepare: composes a point and builds it; a ValueError is its refusal.
        most: trials; None sets no limit.
        minutes: after which no trial begins; None sets no limit.
        say: shows a line.
    """

    search: Search
    question: Question
    proposer: Proposer
    prepare: Callable[[Point], Prepared]
    say: Callable[[str], None]
    most: int | None = None
    minutes: float | None = None
    pruning: Pruning | None = None
    jobs: dict[int, Any] = field(default_factory=dict)  # of the trials that are being run here
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._before = self.search.seconds
        for trial in self.search.trials:
            self._settle_unfinished(trial)
            self.proposer.add(trial)
            if self.pruning is not None and trial.state != SAME:
                self._recall(trial, self.pruning)

    @property
    def seconds(self) -> float:
        """That the search has worked."""
        return self._before + time.monotonic() - self._began

    def next(self) -> Trial | None:
        """The trial that is to be run now, noted; None where none is."""
        for trial in self.search.running:  # begun by an earlier process
            if trial.number not in self.jobs:
                if self._prepared(trial) is not None:
                    return trial
                self.proposer.tell(trial)
                self.save()
        for _ in range(_MOST_SAME):
            if self.is_over:
                return None
            number = sum(trial.state != GIVEN for trial in self.search.trials)
            point = self.proposer.ask(number, self._spent)
            trial = None if point is None else self._take(number, point)
            if trial is None or trial.state == RUNNING:
                return trial
        return None

    @property
    def is_over(self) -> bool:
        """Whether no new trial begins any more."""
        return self._spent >= 1

    @property
    def _spent(self) -> float:
        of_time = 0.0 if self.minutes is None else self.seconds / (60 * self.minutes)
        return max(of_time, 0.0 if self.most is None else len(self.search.counted) / self.most)

    def judge(self, trial: Trial, strategy: str, stage: str, epoch: int, value: float) -> bool:
        """Take one epoch of a trial; whether it is to be given up."""
        return self.pruning is not None and self.pruning.report(trial.number, strategy, stage, epoch, value)

    def end(self, trial: Trial, reason: str = "") -> None:
        """Take a trial back: what it came to stands in its record.

        reason: why it failed, where it may have left no record.
        """
        self.jobs.pop(trial.number, None)
        try:
            self._read(trial, read_record(self.search.directory / trial.folder))
        except RunDirectoryError as error:
            trial.state, trial.reason = FAILED, reason or str(error)
        if trial.state == RUNNING:
            trial.state, trial.reason = FAILED, reason or "it ended without a word"
        if self.pruning is not None:
            self._recall(trial, self.pruning)
        self.proposer.tell(trial)
        self.save()
        self.say(self._line(trial))

    def save(self) -> None:
        """Write search.json."""
        self.search.seconds = self.seconds
        self.search.save()

    def _take(self, number: int, point: Point) -> Trial:
        """Note a new point; its trial is running, or over already."""
        trial = Trial(number, dict(point), "")
        prepared = self._prepared(trial)
        if prepared is not None:
            trial.folder, trial.identity = prepared.folder, prepared.identity
            like = [each for each in self.search.trials if each.identity == trial.identity]
            if like:
                del self.jobs[number]
                trial.state, trial.folder = SAME, like[0].folder
                trial.figures, trial.teacher = dict(like[0].figures), dict(like[0].teacher)
        self.search.trials.append(trial)
        self.save()
        if trial.state != RUNNING:
            self.proposer.tell(trial)
        return trial

    def _prepared(self, trial: Trial) -> Prepared | None:
        """A trial's run, ready; None where it is refused: it has failed."""
        try:
            prepared = self.prepare(trial.point)
        except ValueError as error:
            trial.state, trial.reason = FAILED, str(error).splitlines()[-1].strip()
            self.say(self._line(trial))
            return None
        self.jobs[trial.number] = prepared.job
        return prepared

    def _settle_unfinished(self, trial: Trial) -> None:
        """A trial that was running when the search was killed may have ended all the same."""
        if trial.state == RUNNING:
            try:
                record = read_record(self.search.directory / trial.folder)
            except RunDirectoryError:
                return
            if record.status in (FINISHED, PRUNED):
                self._read(trial, record)

    def _read(self, trial: Trial, record: Record) -> None:
        trial.seconds = record.wall_seconds
        trial.epochs = sum(stage.get("epochs") or 0 for stage in record.stages)
        trial.teacher = teacher_figures(record)
        if record.status == FINISHED:
            trial.state, trial.figures = FINISHED, figures(record)
            missing = [q.name for q in self._quantities if q.name not in trial.figures]
            if missing:
                trial.state, trial.reason = FAILED, f"its record holds no {', '.join(missing)}"
        elif record.status in (FAILED, PRUNED):
            error = record.error or {}
            trial.state, trial.reason = record.status, error.get("message", "")
            if record.status == PRUNED:
                lines = self._epochs(trial)
                name = self.question.objectives[0].quantity.name
                trial.epochs = len(lines)
                trial.figures = {name: lines[-1][f"validation_{name}"]} if lines else {}

    @property
    def _quantities(self) -> list[Any]:
        return [each.quantity for each in (*self.question.objectives, *self.question.bounds)]

    def _epochs(self, trial: Trial) -> list[dict[str, Any]]:
        path = self.search.directory / trial.folder / METRICS
        return list(read_metrics(path)) if trial.folder and path.exists() else []

    def _recall(self, trial: Trial, pruning: Pruning) -> None:
        """Have the pruning know the epochs of a trial."""
        lines = self._epochs(trial)
        if not lines:
            return
        try:
            strategy = read_record(self.search.directory / trial.folder).strategy
        except RunDirectoryError:
            return
        if trial.state == RUNNING:
            for line in lines:
                value = line.get(f"validation_{pruning.metric.name}")
                if value is not None:
                    pruning.report(trial.number, strategy, line["stage"], line["epoch"], value)
        else:
            pruning.end(trial.number, lines, strategy, complete=trial.is_known)

    def _line(self, trial: Trial) -> str:
        done = f"{len(self.search.counted)}" + ("" if self.most is None else f" of {self.most}")
        point = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in trial.point.items())
        if trial.state == FINISHED:
            came = ", ".join(
                f"{q.name} {q.shown(trial.figures[q.name])}" for q in dict.fromkeys(self._quantities)
            )
            best = ", on the front" if trial in front(self.search.trials, self.question) else ""
            return f"{trial.name} ({done}): {point}: {came}{best}; {trial.seconds:.1f} s"
        return f"{trial.name} ({done}): {point}: {trial.state}: {trial.reason.splitlines()[0] if trial.reason else ''}"
