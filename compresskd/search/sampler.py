"""Which point is tried next: Optuna's TPE, which learns from all trials before (Bergstra et al. 2011; of several
objectives, Ozaki et al. 2022; with constraints, Watanabe and Hutter 2023).

The sampler is made anew for each question, seeded by the number of points before: with one worker a search that was
killed goes on with the points that it would have tried.
"""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from compresskd.options import OptionError
from compresskd.run import PRUNED, RUNNING
from compresskd.search.space import Choice, Dimension, Point, listed
from compresskd.search.trials import Question, Trial

INSTALL = "pip install 'compresskd[search]'"
_TRIES = 20  # of a point that is new, before one is drawn from what is left
_EXCESS = "excess"


class Sampler:
    """Takes what has been tried, and says what to try next.

    Args:
        question: space, objectives and bounds.
        seed: of all that is drawn.
    """

    def __init__(self, question: Question, seed: int):
        optuna = imported()
        self._question, self._seed = question, seed
        self._asked: dict[int, Any] = {}  # number of a trial -> Optuna's
        self._seen: set[tuple[str, ...]] = set()
        self._study = optuna.create_study(
            directions=["minimize"] * len(question.objectives), sampler=optuna.samplers.RandomSampler()
        )

    def add(self, trial: Trial) -> None:
        """Take a trial that was asked for by an earlier process, or whose point came from elsewhere."""
        with _quiet():
            parameters = {each.key: _value(each, trial.point[each.key]) for each in self._question.space}
            self._study.enqueue_trial(parameters)
            self._asked[trial.number] = self._study.ask(_distributions(self._question.space))
        self._seen.add(tuple(trial.point.values()))
        if trial.state != RUNNING:
            self.tell(trial)

    def ask(self, number: int, spent: float) -> Point | None:
        """A point that has not been tried; None where all have been.

        Args:
            number: of the trial that it is for.
            spent: what is left makes no difference here.
        """
        for attempt in range(_TRIES):
            with _quiet():
                self._study.sampler = self._sampler(f"{self._seed}/{number}/{attempt}")
                asked = self._study.ask(_distributions(self._question.space))
                point = {each.key: each.text(asked.params[each.key]) for each in self._question.space}
                if tuple(point.values()) not in self._seen:
                    self._seen.add(tuple(point.values()))
                    self._asked[number] = asked
                    return point
                self._study.tell(asked, state=imported().trial.TrialState.FAIL)  # nothing is learnt from it
        left = [
            point for point in listed(self._question.space) or () if tuple(point.values()) not in self._seen
        ]
        if not left:
            return None
        point = random.Random(f"{self._seed}/{number}").choice(left)
        self.add(Trial(number, dict(point), ""))
        return point

    def tell(self, trial: Trial) -> None:
        """Take how a trial ended."""
        states, asked = imported().trial.TrialState, self._asked[trial.number]
        with _quiet():
            if trial.is_known:
                asked.set_user_attr(_EXCESS, trial.excesses(self._question.bounds))
                costs = [objective.cost(trial.figures) for objective in self._question.objectives]
                self._study.tell(asked, costs)
            elif trial.state == PRUNED and len(self._question.objectives) == 1 and trial.figures:
                asked.set_user_attr(_EXCESS, [])
                asked.report(self._question.objectives[0].cost(trial.figures), trial.epochs)
                self._study.tell(asked, state=states.PRUNED)
            else:
                self._study.tell(asked, state=states.FAIL)

    def _sampler(self, seed: str) -> Any:
        constrained = {"constraints_func": lambda trial: trial.user_attrs.get(_EXCESS, [])}
        return imported().samplers.TPESampler(
            seed=zlib.crc32(seed.encode()),
            multivariate=True,
            constant_liar=True,  # points that other workers are at are kept away from
            **(constrained if self._question.bounds else {}),
        )


def imported() -> Any:
    """Optuna, with its own log kept to errors.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise OptionError("search", f"no package optuna ({error})", f"it: {INSTALL}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distributions(space: Sequence[Dimension]) -> dict[str, Any]:
    made = imported().distributions
    found = {}
    for each in space:
        if isinstance(each, Choice):
            found[each.key] = made.CategoricalDistribution(each.values)
        elif each.whole:
            step = int(each.step or 1)
            found[each.key] = made.IntDistribution(int(each.low), int(each.high), log=each.log, step=step)
        else:
            found[each.key] = made.FloatDistribution(each.low, each.high, log=each.log, step=each.step)
    return found


def _value(dimension: Dimension, text: str) -> Any:
    if isinstance(dimension, Choice):
        return text
    return int(text) if dimension.whole else float(text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings of features that it may change: the range of its versions is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
