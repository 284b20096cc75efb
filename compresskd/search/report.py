"""What is said of a search when it ends: how many trials there were, the front, what was chosen and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compresskd.compare.tables import Cell, Column, Table
from compresskd.search.front import front
from compresskd.search.quantities import Quantity
from compresskd.search.trials import GIVEN, SAME, Question, Search, Trial


def counts(search: Search) -> str:
    """How many trials, and how they ended."""
    states = Counter(trial.state for trial in search.counted)
    ended = ", ".join(f"{number} {state}" for state, number in states.most_common())
    others = Counter(trial.state for trial in search.trials if trial.state in (SAME, GIVEN))
    same = f"; {others[SAME]} more points were runs that were there already" if others[SAME] else ""
    given = f"; {others[GIVEN]} runs of before were given" if others[GIVEN] else ""
    count = len(search.counted)
    return f"{count} trial{'s' * (count != 1)} ({ended or 'none'}){same}{given}"


def rule(question: Question) -> str:
    """How one point is chosen of several."""
    first, *others = question.objectives
    ties = f", ties by {', '.join(each.words for each in others)}" if others else ""
    kept = (
        f" of those with {' and '.join(bound.text for bound in question.bounds)}" if question.bounds else ""
    )
    return f"{first.words}{kept}{ties}"


def front_table(search: Search, question: Question) -> Table:
    """The trials that no other beats, the chosen one first."""
    shown = shown_quantities(question)
    columns = [
        Column("trial"),
        *(Column(each.key) for each in question.space),
        *(Column(heading(each), numeric=True) for each in shown),
        Column("folder", essential=False),
    ]
    best = front(search.trials, question)
    rows = tuple(_row(trial, question, shown, chosen=trial is best[0]) for trial in best)
    title = "Pareto front" if len(question.objectives) > 1 else "Best trial"
    noted = f"On validation, of {counts(search)}. Chosen first: {rule(question)}."
    return Table(title, tuple(columns), rows, (noted,))


def shown_quantities(question: Question) -> Sequence[Quantity]:
    """What the table of a question shows, each once; the bytes in any case."""
    asked = [each.quantity for each in (*question.objectives, *question.bounds)]
    return list(dict.fromkeys([*asked, Quantity("bytes")]))


def heading(quantity: Quantity) -> str:
    """Of a column."""
    split = "" if quantity.metric is None else "validation "
    unit = {"latency": " (ms)"}.get(quantity.name, " (%)" if quantity.is_points else "")
    return f"{split}{quantity.name.replace('_', ' ')}{unit}"


def figures_line(trial: Trial, question: Question) -> str:
    """The figures of one trial, as people read them."""
    quantities = shown_quantities(question)
    return ", ".join(
        f"{q.name} {q.shown(trial.figures[q.name])}" for q in quantities if q.name in trial.figures
    )


def point_line(trial: Trial) -> str:
    """The values of one trial."""
    return " ".join(f"{key}={value}" for key, value in trial.point.items())


def _row(trial: Trial, question: Question, shown: Sequence[Quantity], *, chosen: bool) -> tuple[Cell, ...]:
    kind = "front" if chosen else ""
    figures = [trial.figures.get(each.name) for each in shown]
    return (
        Cell(trial.name, trial.number, kind),
        *(Cell(trial.point.get(each.key, "–")) for each in question.space),
        *(
            Cell("–" if value is None else each.shown(value).rstrip("% ms"), value)
            for each, value in zip(shown, figures, strict=True)
        ),
        Cell(trial.folder),
    )
