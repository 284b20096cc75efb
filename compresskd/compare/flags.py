"""What stands between two records and a fair comparison. Flagged records are shown, never dropped."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from compresskd.compare.study import Entry
from compresskd.run import SCHEMA

_T = TypeVar("_T")
LATENCY_ONLY = frozenset({"hardware"})
EXCLUDED = frozenset(
    {"running", "failed", "interrupted", "pruned", "unknown", "duplicate", "no metric", "teacher run"}
)


@dataclass(frozen=True, slots=True)
class Flag:
    """`code` is one or two words for a table; `text` says what is wrong and with respect to what."""

    code: str
    text: str


def flag(
    entries: Sequence[Entry], metric: str, groups: Sequence[int], teachers: Collection[int] = ()
) -> list[tuple[Flag, ...]]:
    """The flags of each entry.

    Args:
        entries: what is compared.
        metric: the number that the comparison is about.
        groups: which entries have equal configurations: two finished ones with one seed are duplicates.
        teachers: positions of entries that are the teachers of others (see `teacher_runs`).
    """
    usual = _Usual.of([entry for index, entry in enumerate(entries) if index not in teachers] or entries)
    flags = [
        [*_status(entry, metric), *_search(entry), *_identity(entry, usual), *_reading(entry)]
        for entry in entries
    ]
    for index in teachers:
        flags[index].append(Flag("teacher run", "the teacher of other records here: no competitor of theirs"))
    for index, newest in _duplicates(entries, groups, flags):
        text = f"same configuration and seed as {entries[newest].run}, which is newer and counts instead"
        flags[index].append(Flag("duplicate", text))
    return [tuple(found) for found in flags]


def teacher_runs(entries: Sequence[Entry]) -> frozenset[int]:
    """Positions of the entries whose directory another record names as its teacher's."""
    teachers = {Path(text).resolve() for text in {entry.teacher_directory for entry in entries} if text}
    names = {path.name for path in teachers}  # following the links of ten thousand folders takes a second
    found = set()
    for index, entry in enumerate(entries):
        directory = Path(os.path.abspath(entry.directory))
        if directory.name in names and directory.resolve() in teachers:
            found.add(index)
    return frozenset(found)


def counts(flags: Iterable[Flag]) -> bool:
    """Whether an entry with these flags enters means, tests and fronts."""
    return not any(flag.code in EXCLUDED for flag in flags)


def latency_counts(flags: Iterable[Flag]) -> bool:
    """Whether its latency does, too."""
    return not any(flag.code in LATENCY_ONLY for flag in flags)


def _status(entry: Entry, metric: str) -> list[Flag]:
    if entry.status == "finished":
        if metric in entry.numbers:
            return []
        where = f"stage {entry.stage}" if entry.stage else "it (no such stage)"
        return [Flag("no metric", f"finished, but {where} has no {metric}")]
    texts = {
        "running": f"not finished; last written {entry.updated or 'at an unknown time'}",
        "failed": f"failed: {entry.error or 'no error was recorded'}",
        "interrupted": "interrupted before its end",
        "pruned": f"ended early by its search: {entry.error or 'no reason was recorded'}",
    }
    known = entry.status in texts
    text = texts.get(entry.status, f"status {entry.status!r}: not known to be finished")
    return [Flag(entry.status if known else "unknown", text)]


def _search(entry: Entry) -> list[Flag]:
    """Selection is a part of a result: of how many trials a run was the best, or that it was one of them."""
    count = entry.search.get("num_trials")
    if isinstance(count, int):
        text = (
            f"chosen by validation among {count} trials: its validation figures are the luckiest of so many"
        )
        return [Flag(f"best of {count}", text)]
    return [Flag("trial", "a trial of a search, judged on validation alone")] if entry.search else []


@dataclass(frozen=True)
class _Usual:
    """What most records have: the others are flagged with respect to it."""

    data: str | None
    test: str | None
    teacher: str | None
    teacher_of_seed: dict[int | None, str] | None
    hardware: tuple[str, ...]

    @staticmethod
    def of(entries: Sequence[Entry]) -> "_Usual":
        finished = [entry for entry in entries if entry.status == "finished"] or entries
        by_seed: defaultdict[int | None, Counter[str]] = defaultdict(Counter)
        for entry in finished:
            if entry.teacher:
                by_seed[entry.seed][entry.teacher] += 1
        all_teachers: Counter[str] = sum(by_seed.values(), Counter())
        follows_seed = len(by_seed) > 1 and sum(map(len, by_seed.values())) == len(all_teachers)
        return _Usual(
            data=_most(entry.data for entry in finished),
            test=_most(entry.test for entry in finished),
            teacher=_most(all_teachers.elements()),
            teacher_of_seed={s: c.most_common(1)[0][0] for s, c in by_seed.items()} if follows_seed else None,
            hardware=_most(entry.hardware for entry in finished if _has_latency(entry)) or (),
        )

    def teacher_for(self, seed: int | None) -> str | None:
        """With teachers that no two seeds share (each seed trains its own), the usual one of that seed."""
        return self.teacher if self.teacher_of_seed is None else self.teacher_of_seed.get(seed)


def _most(values: Iterable[_T | None]) -> _T | None:
    common = Counter(value for value in values if value is not None).most_common(1)
    return common[0][0] if common else None


def _identity(entry: Entry, usual: _Usual) -> list[Flag]:
    flags = []
    if entry.schema != SCHEMA:
        flags.append(Flag("schema", _schema(entry.schema)))
    for code, own, most in (("data", entry.data, usual.data), ("test set", entry.test, usual.test)):
        if own is None:
            flags.append(Flag(code, f"no fingerprint of the {code}: nobody can tell whether it is the same"))
        elif own != most:
            flags.append(Flag(code, f"other {code} ({own}; most records have {most})"))
    teacher = usual.teacher_for(entry.seed)
    if entry.teacher and teacher and entry.teacher != teacher:
        flags.append(Flag("teacher", f"other teacher ({entry.teacher}; most records have {teacher})"))
    if entry.hardware != usual.hardware and _has_latency(entry):
        own, most = (", ".join(parts) or "unknown hardware" for parts in (entry.hardware, usual.hardware))
        flags.append(Flag("hardware", f"latency measured on {own}; most records on {most}"))
    return flags


def _has_latency(entry: Entry) -> bool:
    return any(name.startswith("latency_") for name in entry.numbers)


def _schema(schema: int | None) -> str:
    if schema is None:
        return "no schema number: an unknown layout, read as far as names agree"
    age = "newer" if schema > SCHEMA else "older"
    return f"schema {schema}, {age} than {SCHEMA}, which this version reads: read as far as names agree"


def _reading(entry: Entry) -> list[Flag]:
    if not entry.problems:
        return []
    shown = "; ".join(entry.problems[:8])
    more = f"; and {len(entry.problems) - 8} more" if len(entry.problems) > 8 else ""
    return [Flag("incomplete", f"{shown}{more}")]


def _duplicates(
    entries: Sequence[Entry], groups: Sequence[int], flags: Sequence[Sequence[Flag]]
) -> list[tuple[int, int]]:
    """Pairs (index of an older run, index of the newest of the same group and seed)."""
    same: defaultdict[tuple[int, int | None], list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if entry.seed is not None and counts(flags[index]):
            same[groups[index], entry.seed].append(index)
    pairs = []
    for indices in same.values():
        *older, newest = sorted(indices, key=lambda index: (entries[index].created, entries[index].run))
        pairs += [(index, newest) for index in older]
    return pairs
