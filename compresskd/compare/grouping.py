"""Groups of entries: their summaries, Pareto fronts and order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compresskd.compare import numbers, pareto
from compresskd.compare.flags import Flag, counts, latency_counts
from compresskd.compare.keys import ABSENT
from compresskd.compare.statistics import Summary, summarize
from compresskd.compare.study import Entry


@dataclass(frozen=True)
class Group:
    """Entries that differ in their seed only (or whatever `--by` leaves open).

    `members` are all entries, `counted` those that enter `summaries`; `fronts` names the costs (of
    numbers.COSTS) on whose Pareto front the group lies; `units` tells counted entries apart within the group.
    """

    values: tuple[str, ...]
    identity: tuple[object, ...]
    members: tuple[int, ...]
    counted: tuple[int, ...]
    units: tuple[tuple[str, ...], ...]
    summaries: Mapping[str, Summary]
    fronts: frozenset[str] = frozenset()

    def mean(self, name: str | None) -> float | None:
        """The mean of a number over the counted entries, None where none has it."""
        summary = self.summaries.get(name or "")
        return summary.mean if summary else None


@dataclass(frozen=True)
class About:
    """What is known of each entry besides its numbers: see Group."""

    identities: Sequence[tuple[object, ...]]
    flags: Sequence[tuple[Flag, ...]]
    units: Sequence[tuple[str, ...]]


def group_entries(entries: Sequence[Entry], columns: Sequence[Sequence[str]], about: About) -> list[Group]:
    """Groups of entries that agree in identity and in every column, with the summaries of their numbers."""
    members: dict[tuple[object, ...], list[int]] = {}
    texts = list(zip(*columns, strict=True)) if columns else [()] * len(entries)
    for index, (identity, text) in enumerate(zip(about.identities, texts, strict=True)):
        members.setdefault((identity, text), []).append(index)
    groups = []
    for indices in members.values():
        counted = tuple(index for index in indices if counts(about.flags[index]))
        units = tuple(about.units[index] for index in counted)
        summaries = _summaries(entries, counted, about.flags)
        first = indices[0]
        groups.append(Group(texts[first], about.identities[first], tuple(indices), counted, units, summaries))
    return groups


def _summaries(
    entries: Sequence[Entry], counted: Sequence[int], flags: Sequence[tuple[Flag, ...]]
) -> dict[str, Summary]:
    collected: dict[str, list[float]] = {}
    for index in counted:
        latency_fair = latency_counts(flags[index])
        for name, value in entries[index].numbers.items():
            if latency_fair or not name.startswith(numbers.LATENCY):
                collected.setdefault(name, []).append(value)
    found = {name: summarize(measured, **numbers.limits(name)) for name, measured in collected.items()}
    return {name: summary for name, summary in found.items() if summary is not None}


def mark_fronts(groups: Sequence[Group], metric: str, latency: str | None) -> list[Group]:
    """Fronts are drawn among groups of the same data, test set and schema only."""
    sign = -1 if numbers.lower_is_better(metric) else 1
    fronts: list[set[str]] = [set() for _ in groups]
    for identity in {group.identity for group in groups}:
        alike = [index for index, group in enumerate(groups) if group.identity == identity]
        means = [groups[index].mean(metric) for index in alike]
        scores = [None if mean is None else sign * mean for mean in means]
        for cost in numbers.COSTS:
            costs = [groups[index].mean(latency if cost == "latency" else cost) for index in alike]
            for index, on_front in zip(alike, pareto.front(costs, scores), strict=True):
                fronts[index].update([cost] if on_front else [])
    return [replace(group, fronts=frozenset(found)) for group, found in zip(groups, fronts, strict=True)]


def sort_groups(groups: Sequence[Group], by: Sequence[str], key: str, reverse: bool) -> list[Group]:
    """Sorted by one of `by`, by `n`, or by a number, best first; ties by the groups' keys, missing last."""
    if key == "n":
        order = [(False, float(-len(group.counted)), "") for group in groups]
    elif key in by:
        order = [
            (group.values[by.index(key)] == ABSENT, *_natural(group.values[by.index(key)]))
            for group in groups
        ]
    else:
        sign = 1 if numbers.lower_is_better(key) else -1
        means = [group.mean(key) for group in groups]
        order = [(mean is None, 0.0 if mean is None else sign * mean, "") for mean in means]
    if reverse:
        order = [(missing, -number, text) for missing, number, text in order]
    ties = [tuple(_natural(text) for text in group.values) for group in groups]
    indices = sorted(range(len(groups)), key=lambda index: ties[index])
    indices.sort(key=lambda index: order[index][2], reverse=reverse)
    indices.sort(key=lambda index: order[index][:2])
    return [groups[index] for index in indices]


def _natural(text: str) -> tuple[float, str]:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return (math.inf, text) if math.isnan(number) else (number, "")
