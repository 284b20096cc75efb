"""How a run comes by its teacher: a checkpoint that the user names, or an ordinary run that is made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from compresskd import artifact
from compresskd.console import Reporter
from compresskd.models.weights import load_weights
from compresskd.run import FINISHED, AlreadyFinished, InUse, describe_owner, open_run, read_record

if TYPE_CHECKING:
    from compresskd.experiment import Experiment


@dataclass(frozen=True)
class Teacher:
    """The teacher of a run.

    Attributes:
        build: makes the untrained architecture.
        weights: checkpoint to load into it; None to train it once.
        experiment: the run that trains it, an ordinary one (None where `weights` is given).
        directory: of that run, keyed by the hash of what determines it.
        key: that hash.
        trust: packages besides compresskd that its architecture comes from.
    """

    build: Callable[[], nn.Module]
    weights: Path | None = None
    experiment: Experiment | None = None
    directory: Path | None = None
    key: str | None = None
    trust: tuple[str, ...] = ()

    def obtain(self, reporter: Reporter) -> nn.Module:
        """The trained teacher, in evaluation mode with gradients off.

        Of several processes that need the same teacher one trains it, the others wait and say so; what a dead
        process left unfinished is gone on with.
        """
        if self.weights is not None:
            teacher = self.build()
            load_weights(teacher, self.weights)
        else:
            teacher = self._trained(reporter)
        return teacher.eval().requires_grad_(False)

    def describe(self) -> dict[str, Any]:
        """Where it came from, for the record."""
        if self.weights is not None:
            return {"key": None, "source": "weights", "weights": str(self.weights)}
        return {"key": self.key, "source": "trained", "directory": str(self.directory)}

    def _trained(self, reporter: Reporter) -> nn.Module:
        if self.directory is None or self.experiment is None:
            raise ValueError("a teacher without weights needs an experiment that trains it")
        if not self._finished():
            self._train(reporter)
        else:
            reporter.note(f"teacher: taken from {self.directory}")
        record = read_record(self.directory)
        return artifact.load(self.directory / "checkpoints" / str(record.final), trust=self.trust)

    def _finished(self) -> bool:
        assert self.directory is not None
        return (self.directory / "record.json").exists() and read_record(self.directory).status == FINISHED

    def _train(self, reporter: Reporter) -> None:
        assert self.directory is not None
        assert self.experiment is not None
        try:
            run = open_run(self.directory)
        except AlreadyFinished:
            return
        except InUse:
            reporter.note(
                f"teacher: waiting for {describe_owner(self.directory)}, which trains it in {self.directory}"
            )
            try:
                run = open_run(self.directory, wait=-1)
            except AlreadyFinished:
                return
        reporter.note(f"teacher: {'goes on with' if run.resumed else 'training it in'} {self.directory}")
        try:
            self.experiment.run(run, Reporter(reporter.console, prefix="teacher: "))
        finally:
            run.close()
