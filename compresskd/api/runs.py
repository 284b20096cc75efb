"""What runs have left on disk, for notebooks. Importing this loads no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskd.api.tables import table_of
from compresskd.compare.comparison import Options, compare
from compresskd.compare.study import load as load_study
from compresskd.run import Record, RunDirectoryError, read_metrics, read_record
from compresskd.run.ownership import METRICS, PREDICTIONS
from compresskd.run.predictions import read_predictions

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

log = logging.getLogger("compresskd")
Folder = str | PathLike[str]


def results(*folders: Folder, stage: str = "final", as_rows: bool = False) -> Any:
    """Read the records of runs at or below some folders: what `compresskd compare` shows, a line a run.

    Args:
        *folders: of a sweep, of a run, or of many.
        stage: whose numbers: `final`, a stage's name, or `all` for a line of each.
        as_rows: a list of dicts in any case.

    Returns:
        A pandas DataFrame where pandas is installed, else a list of dicts: run, directory, status, strategy, stage,
        seed, every config key in which the runs differ, and every number by its name in the record (accuracies as
        fractions, times in seconds, latencies in milliseconds).

    Raises:
        RunDirectoryError: there is no record. One that cannot be read is a warning of the log `compresskd`.

    >>> import compresskd
    >>> compresskd.results("outputs/sweeps/rank_3fa9c1d0")  # doctest: +SKIP
    """
    study = load_study([Path(folder) for folder in folders], stage)
    for problem in study.problems:
        log.warning("not read: %s: %s", problem.path, problem.reason)
    if not study.entries:
        raise RunDirectoryError(f"{', '.join(map(str, folders)) or 'results()'}: no record was read there")
    comparison = compare(study, Options(stage=stage))
    rows = []
    for position, entry in enumerate(study.entries):
        named = {key: _value(values[position]) for key, values in comparison.keys.differing.items()}
        rows.append(
            {"run": entry.run, "directory": str(entry.directory), "status": entry.status}
            | named
            | {"strategy": entry.strategy, "stage": entry.stage, "seed": entry.seed}
            | dict(entry.numbers)
        )
    return table_of(rows, as_rows=as_rows)


def _value(text: str) -> Any:
    """A config value as it was, from the spelling that runs are compared by."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class Run:
    """A run directory, read.

    Args:
        directory: of a run, finished or not.

    Raises:
        RunDirectoryError: it is none, or its record is damaged.

    >>> import compresskd
    >>> run = compresskd.Run("outputs/2026-11-23/12-34-56_distill_r16")  # doctest: +SKIP
    >>> run.record.stages[-1]["metrics"]["test_accuracy"]  # doctest: +SKIP
    """

    def __init__(self, directory: Folder):
        self.directory = Path(directory)
        self.record: Record = read_record(self.directory)

    def __repr__(self) -> str:
        return f"<Run {self.directory}: {self.record.strategy}, {self.record.status}>"

    @property
    def curves(self) -> Any:
        """One line an epoch with stage, epoch, losses and accuracies: a DataFrame, or rows without pandas."""
        path = self.directory / METRICS
        return table_of(read_metrics(path) if path.exists() else [])

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """The predicted class of every test sample [N] by stage, besides `targets` and `teacher`."""
        path = self.directory / PREDICTIONS
        return dict(read_predictions(path)) if path.exists() else {}

    def model(self, stage: str | None = None, *, trust: Sequence[str] = ()) -> nn.Module:
        """The final model, or that of a finished stage, in evaluation mode.

        Args:
            stage: its name; None takes the final model.
            trust: packages besides compresskd whose code may run; those of your own runs need not be named.

        Raises:
            RunDirectoryError: no such stage has finished.
            ArtifactError: the run has no final model yet, or its files are damaged.
        """
        from compresskd.artifact import load
        from compresskd.trust import granted

        if stage is None:
            return load(self.directory, trust=trust)
        entry = self.record.stage(stage)
        if entry is None:
            finished = ", ".join(each["name"] for each in self.record.stages) or "none"
            raise RunDirectoryError(
                f"{self.directory} has no finished stage {stage!r}; finished are: {finished}"
            )
        return load(self.directory / entry["checkpoint"], trust=granted(self.directory, self.record, trust))
