"""How a run comes by its teacher: a checkpoint that the user names, or an ordinary run that is made once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compresskd import artifact
from compresskd.data.base import Split
from compresskd.distributed import active
from compresskd.engine.events import Listener
from compresskd.models.weights import load_weights
from compresskd.run import (
    AlreadyFinished,
    Followed,
    InUse,
    Run,
    RunDirectoryError,
    changes,
    describe_owner,
    is_reproduced,
    open_run,
    read_record,
)
from compresskd.training import Scores


@dataclass(frozen=True)
class Teacher:
    """The teacher of a run.

    Attributes:
        build: makes the untrained architecture, or the teacher with its weights.
        weights: checkpoint to load into it, or the file or folder that `build` takes it from; None to train it once.
        train: runs the ordinary run that trains it, in a directory (None where `weights` is given).
        directory: of that run, keyed by the hash of what determines it.
        key: that hash; of a folder of weights its fingerprint.
        trust: packages besides compresskd that its architecture may be loaded from; those that `build` itself
            takes parts from need not be named.
        has_weights: whether what `build` makes has the weights already.
    """

    build: Callable[[], nn.Module]
    weights: Path | None = None
    train: Callable[[Run, Listener], object] | None = None
    directory: Path | None = None
    key: str | None = None
    trust: tuple[str, ...] = ()
    has_weights: bool = False

    def obtain(self, reporter: Listener) -> tuple[nn.Module, dict[str, Any]]:
        """The trained teacher, in evaluation mode with gradients off, and where it came from, for the record.

        Of several processes that need the same teacher one trains it, the others wait and say so; what a dead
        process left unfinished is resumed.

        Raises:
            RunDirectoryError: the teacher's directory cannot be used, or what is in it is damaged.
        """
        if self.weights is not None:
            teacher = self.build()
            if not self.has_weights:
                load_weights(teacher, self.weights)
            origin = {"key": self.key, "source": "weights", "weights": str(self.weights)}
        else:
            teacher, source = self._trained(reporter)
            origin = {"key": self.key, "source": source, "directory": str(self.directory)}
        return teacher.eval().requires_grad_(False), origin

    def check_score(self, scores: Scores, test: Split) -> None:
        """See that a teacher that has a run of its own answers as that run recorded.

        Raises:
            RunDirectoryError: it does not: its model, its record or its code was changed since.
        """
        if self.directory is None or self.weights is not None:
            return
        record = read_record(self.directory)
        entry = record.stage(record.final) or {}
        if "fingerprint" not in entry and record.config.get("precision", "fp32") != "fp32":
            return  # version 0.1 scored as it trained
        monitor = record.monitor
        recorded, now = entry["metrics"][f"test_{monitor.name}"], scores.values.get(monitor.name, math.nan)
        same = record.data.get("test_fingerprint") == test.fingerprint
        if same and not is_reproduced(monitor, now, recorded, len(test)):
            raise RunDirectoryError(
                f"teacher: the model in {self.directory} scores {monitor.shown(now)} on the test split, its record "
                f"says {monitor.shown(recorded)}: the model, the record or its code was changed since; "
                f"remove {self.directory} to train the teacher again"
            )

    def _trained(self, reporter: Listener) -> tuple[nn.Module, str]:
        if self.directory is None or self.train is None:
            raise ValueError("a teacher without weights needs a run that trains it")
        source = "trained" if self._train(self.train, self.directory, reporter) else "reused"
        record = read_record(self.directory)
        entry = record.stage(record.final)
        if entry is None:
            raise self._unusable("its record names no finished stage")
        for change in changes(self.directory, entry.get("files", {})):
            raise self._unusable(change)
        try:
            teacher = artifact.load(self.directory / entry["checkpoint"], trust=self._packages())
        except artifact.ArtifactError as error:
            raise self._unusable(str(error)) from error
        if artifact.fingerprint(teacher) != entry.get("fingerprint", artifact.fingerprint(teacher)):
            raise self._unusable("its weights are not those that its run recorded")
        return teacher, source

    def _unusable(self, reason: str) -> RunDirectoryError:
        return RunDirectoryError(f"teacher: {reason}; remove {self.directory} to train the teacher again")

    def _packages(self) -> list[str]:
        """The packages of what `build` makes: the run was configured to run them, so loading may as well."""
        return [*self.trust, *artifact.packages(self.build())]

    def _train(self, train: Callable[[Run, Listener], object], directory: Path, reporter: Listener) -> bool:
        """See to it that `directory` holds the trained teacher; whether this process trained any of it."""
        run = self._opened(directory, reporter) if active().leads else Followed(directory)
        if not active().first(lambda: run is not None):
            return False
        assert run is not None
        try:
            train(run, reporter.of_teacher())
        finally:
            run.close()
        active().first(lambda: None)  # until all of it is written
        return True

    def _opened(self, directory: Path, reporter: Listener) -> Run | None:
        """The run that is to train the teacher; None where it is trained."""
        try:
            try:
                run = open_run(directory)
            except InUse:
                owner = describe_owner(directory)
                reporter.note(f"teacher: waiting for {owner}, which trains it in {directory}")
                run = open_run(directory, wait=-1)
        except AlreadyFinished:
            reporter.note(f"teacher: taken from {directory}")
            return None
        reporter.note(f"teacher: {'resuming it in' if run.resumed else 'training it in'} {directory}")
        return run
