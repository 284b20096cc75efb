"""What a run tells while it goes on, and who may listen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from compresskd.metric import Metric
from compresskd.run import Record
from compresskd.training import EpochRecord, StepProgress

log = logging.getLogger("compresskd")  # every line of it goes to the run's log.txt too


def shown(monitor: Metric, metrics: Mapping[str, float]) -> str:
    """The metric that selects, on validation and (if scored) test, as people read it; accuracy needs no name."""
    name = "" if monitor.name == "accuracy" else f"{monitor.name} "
    parts = (
        f"{split} {name}{monitor.shown(metrics[f'{split}_{monitor.name}'])}"
        for split in ("validation", "test")
        if f"{split}_{monitor.name}" in metrics
    )
    return "  ".join(parts)


class Pruned(Exception):
    """Raised by a listener at the end of an epoch: by what has been seen, the run is not worth its time."""


class Listener(Protocol):
    """Follows one run, and changes nothing in it; it may end the run by `Pruned`."""

    def begin(self, directory: Path, record: Record) -> None:
        """Take the beginning of a run, or of what is left of a resumed one, in its directory."""

    def note(self, text: str) -> None:
        """Take one thing that the user should know."""

    def stage(self, name: str, number: int, total: int) -> None:
        """Take the beginning of a stage: `number` counts from 0 to `total` - 1."""

    def step(self, step: StepProgress) -> None:
        """Take the progress inside an epoch, a few times a second."""

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """Take the end of an epoch, of `epochs` in the stage."""

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """Take a stage's entry in the record: it has been scored and saved."""

    def of_teacher(self) -> Listener:
        """Return the listener to the run that trains the teacher."""
        ...

    def end(self, record: Record) -> None:
        """Take the end of the run, however it ended: its record says it, and is written already."""
