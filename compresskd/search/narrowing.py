"""Which point is tried next where a goal is to be met: few trials, since size and score follow from a few keys.

An arm is one choice of strategy, form and bits. Within an arm everything grows with one number, the lever (a rank, or
the share of the parameters that is kept): so the smallest size that meets the goal is found by halving an interval, and
an arm that fails at a size just below the best one so far is given up after a single trial. Short trainings come first;
the most promising arms are then narrowed again by trainings of full length: those whose short ones would meet the goal
at the least size, if they gained as much by the rest of the training as those did that have had it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compresskd.run import RUNNING
from compresskd.search.space import Point
from compresskd.search.trials import Question, Trial

CLOSE = 1.15  # ratio of two values of the lever, or of two sizes, that are not told apart
FULL = 0.9  # share of an allowed size that is used up
PER_ARM = (6, 4)  # trials of short trainings, and of full ones
ARMS_AT_FULL = 3
SHORT_SHARE = 0.6  # of the trials or minutes of a search, for short trainings


@dataclass(frozen=True)
class Arm:
    """Values of all keys but the lever.

    Attributes:
        lever: its key; empty where the user has settled the size: then the arm is one point.
        low, high: the smallest and the largest value of the lever that is tried.
        weight: what size is proportional to besides: the bits.
        power: of the lever that size grows with, about.
        whole: whether the lever is a whole number.
    """

    point: Point
    lever: str = ""
    low: float = 1.0
    high: float = 1.0
    weight: float = 1.0
    power: float = 1.0
    whole: bool = False

    def has(self, trial: Trial) -> bool:
        """Whether a trial is of this arm."""
        is_own = all(trial.point.get(key) == value for key, value in self.point.items())
        return is_own and (not self.lever or self.lever in trial.point)

    def value(self, trial: Trial) -> float:
        """The lever's value in a trial."""
        return float(trial.point[self.lever]) if self.lever else 1.0

    def written(self, value: float) -> str:
        """A value of the lever as it is written."""
        value = min(max(value, self.low), self.high)
        return str(round(value)) if self.whole else repr(float(f"{value:.3g}"))


class Narrowing:
    """Says what to try next, by what has been tried.

    Args:
        question: the goal as bounds, and one objective.
        arms: the most promising first.
        epochs: of short and of full trainings, as they are written; none where there is one kind.
        trials: of the search, as it goes on.
    """

    def __init__(
        self, question: Question, arms: Sequence[Arm], epochs: Sequence[str], trials: Sequence[Trial]
    ):
        self._question, self._arms, self._epochs, self._trials = question, arms, tuple(epochs), trials
        self._shrinks = question.objectives[0].quantity.metric is None

    def add(self, trial: Trial) -> None:
        """It is among the trials."""

    def tell(self, trial: Trial) -> None:
        """It says so itself."""

    def ask(self, number: int, spent: float) -> Point | None:
        """The next point; None where none is left, or where it depends on trials that are running."""
        lengths = range(max(1, len(self._epochs)))
        begun = max((rung for rung in lengths if any(self._of(arm, rung) for arm in self._arms)), default=0)
        if spent >= SHORT_SHARE:
            begun = lengths[-1]
        for rung in lengths[begun:]:
            waiting = False
            for arm in self._ordered(rung):
                tried = self._of(arm, rung)
                if any(trial.state == RUNNING for trial in tried):
                    waiting = True
                elif len(tried) < PER_ARM[rung] and (value := self._next(arm, tried, rung)) is not None:
                    written = arm.written(value)
                    if not any(trial.point.get(arm.lever, written) == written for trial in tried):
                        return self._point(arm, written, rung)
            if waiting:
                return None
        return None

    def _ordered(self, rung: int) -> Sequence[Arm]:
        """The arm with the best trial so far is narrowed first, so that others have to be better than its best."""

        def rank(arm: Arm) -> tuple[float, int]:
            costs = [self._cost(trial) for trial in self._of(arm, rung) if self._meets(trial)]
            return min(costs, default=math.inf) if self._shrinks else 0.0, len(self._of(arm, rung))

        return sorted(self._open_arms(rung), key=rank)

    def _point(self, arm: Arm, written: str, rung: int) -> Point:
        lever = {arm.lever: written} if arm.lever else {}
        return {**arm.point, **lever, **({"epochs": self._epochs[rung]} if self._epochs else {})}

    def _of(self, arm: Arm, rung: int) -> list[Trial]:
        """The trials of an arm at one length of training."""
        own = [trial for trial in self._trials if arm.has(trial)]
        return [t for t in own if not self._epochs or t.point.get("epochs") == self._epochs[rung]]

    def _open_arms(self, rung: int) -> Sequence[Arm]:
        """All arms in short trainings; in full ones the most promising."""
        if rung == 0:
            return self._arms
        gain = self._gain()

        def rank(arm: Arm) -> tuple[float, float]:
            known = [trial for trial in self._of(arm, 0) if trial.is_known]
            missing = [(max(0.0, self._excess(trial) - gain), self._cost(trial)) for trial in known]
            return min(missing, default=(math.inf, math.inf))

        return sorted(self._arms, key=rank)[:ARMS_AT_FULL]

    def _promised(self, arm: Arm) -> float | None:
        """The smallest value of the lever at which a full training of an arm is to meet the goal, by its short ones."""
        gain = self._gain()
        levers, excesses = self._short(arm)
        met = [i for i, excess in enumerate(excesses) if excess <= gain]
        if not gain or not met:
            return None
        first = met[0]
        if first == 0:
            return math.exp(levers[0])
        falls = excesses[first - 1] - excesses[first]
        share = (excesses[first - 1] - gain) / falls
        return math.exp(levers[first - 1] + share * (levers[first] - levers[first - 1]))

    def _short(self, arm: Arm) -> tuple[list[float], list[float]]:
        """The logarithm of the lever, rising, and the excess of the short trainings of an arm."""
        known = sorted((math.log(arm.value(t)), self._excess(t)) for t in self._of(arm, 0) if t.is_known)
        return [lever for lever, _ in known], [excess for _, excess in known]

    def _gain(self) -> float:
        """By how much less a full training misses the goal than a short one of the same point would, in the mean."""
        gains = []
        for arm in self._arms:
            levers, excesses = self._short(arm)
            for trial in self._of(arm, 1) if levers else ():
                lever = math.log(arm.value(trial))
                if trial.is_known and levers[0] <= lever <= levers[-1]:
                    gains.append(float(np.interp(lever, levers, excesses)) - self._excess(trial))
        return sum(gains) / len(gains) if gains else 0.0

    def _next(self, arm: Arm, tried: Sequence[Trial], rung: int) -> float | None:
        """The value of the lever to try next in an arm; None where the arm is done with."""
        if not arm.lever:
            return None if tried else arm.high
        return self._shrunk(arm, tried, rung) if self._shrinks else self._filled(arm, tried, rung)

    def _shrunk(self, arm: Arm, tried: Sequence[Trial], rung: int) -> float | None:
        """Halfway, by ratio, between the largest value that was too bad and the smallest that was not."""
        met = [arm.value(trial) for trial in tried if self._meets(trial)]
        too_big = [arm.value(trial) for trial in tried if trial.is_known and self._fullness(trial) > 1]
        best = self._best_cost()
        cap = None if best is None else self._value_at(arm, best / CLOSE)
        top: float = min(arm.high, *met, *too_big, *([] if cap is None else [cap]), math.inf)
        start = arm.low
        if rung > 0:  # short trainings have told where it is worth to look
            failed: list[float] = [arm.value(trial) for trial in self._of(arm, 0) if not self._meets(trial)]
            start = max(start, *(value / 2 for value in failed if value < top), 0.0)
        good_enough = min(met, default=math.inf)  # a failure above it was bad luck
        missed = [arm.value(t) for t in tried if not self._meets(t) and arm.value(t) not in too_big]
        missed = [value for value in missed if value < good_enough]
        bottom: float = max(start, *missed, 0.0)
        if top < bottom * (CLOSE if tried else 1):
            return None
        if cap is not None and not met and rung == 0:
            return top  # just below the best: where it fails here, the arm is done with
        guess = None if tried or rung == 0 else self._promised(arm)
        return math.sqrt(bottom * top) if guess is None else min(max(guess, bottom), top)

    def _filled(self, arm: Arm, tried: Sequence[Trial], rung: int) -> float | None:
        """What uses up the size that is allowed, by what the trials before took."""
        if rung > 0:
            fitting = [trial for trial in self._of(arm, 0) if self._meets(trial)]
            return None if not fitting else max(arm.value(trial) for trial in fitting)
        last = tried[-1] if tried else None
        if last is None:
            value = self._value_at(arm, None)
            return math.sqrt(arm.low * arm.high) if value is None else value
        if not last.is_known:
            return None
        fits = self._fullness(last) <= 1
        if fits and (self._fullness(last) >= FULL or arm.value(last) >= arm.high):
            return None
        return self._value_at(arm, None)

    def _value_at(self, arm: Arm, cost: float | None) -> float | None:
        """The lever's value at which an arm is about to have this cost, or to use up what is allowed; by its own last
        trial, or by that of an arm that differs in bits; None where there is neither.
        """
        for other in (arm, *self._arms):
            alike = other.lever == arm.lever and _without_bits(other) == _without_bits(arm)
            lengths = range(max(1, len(self._epochs))) if alike else ()
            known = [trial for rung in lengths for trial in self._of(other, rung) if trial.is_known]
            if known:
                ratio = (
                    0.97 / max(self._fullness(known[-1]), 1e-9)
                    if cost is None
                    else cost / self._cost(known[-1])
                )
                return other.value(known[-1]) * (ratio * other.weight / arm.weight) ** (1 / arm.power)
        return None

    def _meets(self, trial: Trial) -> bool:
        return trial.is_known and trial.meets(self._question.bounds)

    def _excess(self, trial: Trial) -> float:
        """By how much it misses the goal, that bound which it is farthest from; below 0 where it meets all."""
        return max(trial.excesses(self._question.bounds))

    def _cost(self, trial: Trial) -> float:
        return self._question.objectives[0].cost(trial.figures)

    def _fullness(self, trial: Trial) -> float:
        """The share of the allowed size that a trial takes, of that bound which it comes closest to."""
        sizes = [bound for bound in self._question.bounds if bound.quantity.metric is None]
        return max((trial.figures[b.quantity.name] / b.limit(trial.teacher) for b in sizes), default=0.0)

    def _best_cost(self) -> float | None:
        return min((self._cost(trial) for trial in self._trials if self._meets(trial)), default=None)


def _without_bits(arm: Arm) -> dict[str, str]:
    return {key: value for key, value in arm.point.items() if key != "bits"}
