"""Several listeners to one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskd.engine.events import Listener
from compresskd.run import Record
from compresskd.training import EpochRecord, StepProgress


class Silent(Listener):
    """Takes everything, and does nothing, as the protocol's own methods: what a listener of few events is made of."""

    def of_teacher(self) -> Listener:
        """Nobody follows the teacher's own run."""
        return Silent()


@dataclass(frozen=True)
class Several:
    """Tells each of them everything, in order; one that raises ends the run."""

    listeners: tuple[Listener, ...]

    def begin(self, directory: Path, record: Record) -> None:
        """A run begins."""
        for each in self.listeners:
            each.begin(directory, record)

    def note(self, text: str) -> None:
        """One thing that the user should know."""
        for each in self.listeners:
            each.note(text)

    def stage(self, name: str, number: int, total: int) -> None:
        """A stage begins."""
        for each in self.listeners:
            each.stage(name, number, total)

    def step(self, step: StepProgress) -> None:
        """A few times a second, inside an epoch."""
        for each in self.listeners:
            each.step(step)

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """After each epoch."""
        for each in self.listeners:
            each.epoch(epoch, epochs)

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """A stage has been scored and saved."""
        for each in self.listeners:
            each.stage_finished(entry)

    def of_teacher(self) -> Listener:
        """Return what follows the teacher's own run."""
        return Several(tuple(each.of_teacher() for each in self.listeners))

    def end(self, record: Record) -> None:
        """The run is over."""
        for each in self.listeners:
            each.end(record)
