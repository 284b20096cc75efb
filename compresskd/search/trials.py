"""The trials of a search and what is settled of it, in search.json: written before a trial begins and after it ends.

What a trial came to stands in its own folder's record; the file says which points were taken, in which order, and
where, so that a search that was killed goes on with the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compresskd.run import FAILED, FINISHED, PRUNED, RUNNING, RunDirectoryError, read_bytes, write_text
from compresskd.run.record import plain
from compresskd.search.quantities import Bound, Objective
from compresskd.search.space import Dimension

FILE = "search.json"
SCHEMA = 1
SAME = "same"  # another point, but the run of an earlier one
GIVEN = "given"  # a finished run of before
STATES = (RUNNING, FINISHED, FAILED, PRUNED, SAME, GIVEN)
_LARGEST = 2**26  # bytes


@dataclass(frozen=True)
class Question:
    """What a search is to find.

    Attributes:
        space: the keys that vary.
        objectives: what is made best; of the first alone where there are several, the chosen point is best.
        bounds: what the chosen point keeps.
    """

    space: tuple[Dimension, ...]
    objectives: tuple[Objective, ...]
    bounds: tuple[Bound, ...] = ()

    @property
    def words(self) -> str:
        """As it was asked."""
        asked = [each.words for each in self.objectives]
        return ", ".join([*asked, *(f"where {bound.text}" for bound in self.bounds)])


@dataclass
class Trial:
    """One point that was, or is being, tried.

    Attributes:
        number: from 0; of a run that was given, below 0.
        point: values by key, as they are written.
        folder: of its run, in that of the search; of one that was given, the whole path.
        identity: equal in trials that are one run.
        state: running, finished, failed, pruned; same (as the trial whose folder it has), given.
        figures: of its final model, on validation.
        teacher: those of its teacher.
        epochs: that were trained in all stages.
        seconds: that it took.
        reason: why it failed or was given up.
    """

    number: int
    point: dict[str, str]
    folder: str
    identity: str = ""
    state: str = RUNNING
    figures: dict[str, float] = field(default_factory=dict)
    teacher: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def is_known(self) -> bool:
        """Whether there are figures of its model."""
        return self.state in (FINISHED, SAME, GIVEN) and bool(self.figures)

    @property
    def name(self) -> str:
        """What it is called."""
        return f"trial_{self.number}" if self.number >= 0 else f"given_{-self.number}"

    def meets(self, bounds: Sequence[Bound]) -> bool:
        """Whether its model keeps them all."""
        return all(excess <= 0 for excess in self.excesses(bounds))

    def excesses(self, bounds: Sequence[Bound]) -> list[float]:
        """By how much it misses each, see `Bound.excess`."""
        return [bound.excess(self.figures, self.teacher) for bound in bounds]


@dataclass
class Search:
    """A search in its folder.

    Attributes:
        directory: of it.
        asked: how it was asked for, so that it can be continued: words and flags.
        trials: in the order in which they were taken; those that were given come first.
        seconds: that it has worked, over all processes that did, up to the last save.
        answer: what it ended with; nothing while it goes on.
        check: sees that the folder is still this process's; raises where it was removed, or taken over.
    """

    directory: Path
    asked: Mapping[str, Any]
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0
    answer: dict[str, Any] = field(default_factory=dict)
    check: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)

    @property
    def counted(self) -> list[Trial]:
        """The trials that are runs of this search."""
        return [trial for trial in self.trials if trial.state not in (SAME, GIVEN)]

    @property
    def running(self) -> list[Trial]:
        """Those that are not over."""
        return [trial for trial in self.trials if trial.state == RUNNING]

    def save(self) -> None:
        """Write search.json atomically.

        Raises:
            Lost: the folder is no longer this process's.
        """
        self.check()
        values = {"schema": SCHEMA, "asked": dict(self.asked), "seconds": self.seconds,
                  "num_trials": len(self.counted), "answer": self.answer,
                  "trials": [asdict(trial) for trial in self.trials]}  # fmt: skip
        write_text(self.directory / FILE, json.dumps(plain(values), indent=1, allow_nan=False) + "\n")


def read_search(directory: Path) -> Search:
    """The search that DIRECTORY/search.json tells of.

    Raises:
        RunDirectoryError: there is none, or it cannot be read.
    """
    path = directory / FILE
    try:
        values = json.loads(read_bytes(path, at_most=_LARGEST))
        trials = [Trial(**each) for each in values["trials"]]
        if values["schema"] != SCHEMA or any(trial.state not in STATES for trial in trials):
            raise ValueError(f"schema {values['schema']!r:.20}, expected {SCHEMA}")
        return Search(
            directory, dict(values["asked"]), trials, float(values["seconds"]), dict(values["answer"])
        )
    except FileNotFoundError:
        raise RunDirectoryError(f"{directory} holds no search: it has no {FILE}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
