"""The best trials: those that no other beats in all objectives, and the one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from compresskd.search.trials import Question, Trial


def front(trials: Sequence[Trial], question: Question) -> list[Trial]:
    """The trials that keep every bound and that no other of these beats, the chosen one first.

    One beats another where it is no worse in any objective, and better in one. Of trials with equal figures the first
    stays.
    """
    known = [trial for trial in trials if trial.is_known and trial.meets(question.bounds)]
    costs = {
        id(trial): [objective.cost(trial.figures) for objective in question.objectives] for trial in known
    }
    kept: list[Trial] = []
    for trial in sorted(known, key=lambda trial: costs[id(trial)]):
        own = costs[id(trial)]
        if not any(all(a <= b for a, b in zip(costs[id(each)], own, strict=True)) for each in kept):
            kept.append(trial)
    return kept


def chosen(trials: Sequence[Trial], question: Question) -> Trial | None:
    """The best in the first objective of those that keep every bound; ties are decided by the next objective."""
    return next(iter(front(trials, question)), None)


def nearest(trials: Sequence[Trial], question: Question) -> Trial | None:
    """The trial that misses the bounds by least, of those with figures; ties are decided by the objectives."""

    def missed(trial: Trial) -> tuple[float, list[float]]:
        excesses = trial.excesses(question.bounds)
        return sum(max(0.0, each) for each in excesses), [o.cost(trial.figures) for o in question.objectives]

    return min((trial for trial in trials if trial.is_known), key=missed, default=None)
