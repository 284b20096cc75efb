"""A study's entries grouped over seeds, summarized, flagged and sorted: all that the writers need."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from compresskd.compare import numbers
from compresskd.compare.flags import Flag, flag, teacher_runs
from compresskd.compare.grouping import About, Group, group_entries, mark_fronts, sort_groups
from compresskd.compare.keys import ABSENT, Keys, analyse, full_key, values
from compresskd.compare.study import ALL, FINAL, Entry, Study, seed_text

STAGE = "stage"


@dataclass(frozen=True)
class Options:
    """What the user asked for. `metrics[0]` is the one that groups are judged by; none: the usual one."""

    by: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ()
    sort: str | None = None
    reverse: bool = False
    stage: str = FINAL
    reference: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Groups in the order in which they are shown; `flags[i]` belongs to `study.entries[i]`."""

    study: Study
    options: Options
    by: tuple[str, ...]
    keys: Keys
    flags: Sequence[tuple[Flag, ...]]
    groups: tuple[Group, ...]
    names: tuple[str, ...]
    latency: str | None
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The number that groups are judged by."""
        return self.options.metrics[0]

    def entries(self, indices: Sequence[int]) -> list[Entry]:
        """The entries at these positions."""
        return [self.study.entries[index] for index in indices]

    def label(self, group: Group) -> str:
        """A group's name in one line."""
        ends = Counter(key.rpartition(".")[2] for key in self.by)
        names = (end if ends[end := key.rpartition(".")[2]] == 1 else key for key in self.by)
        pairs = zip(names, group.values, strict=True)
        named = (f"{name}={text}" if name != "strategy" else text for name, text in pairs)
        return " ".join(named) or self.study.entries[group.members[0]].strategy

    def cost_name(self, cost: str) -> str | None:
        """The number behind one of numbers.COSTS."""
        return self.latency if cost == "latency" else cost


def compare(study: Study, options: Options) -> Comparison:
    """Group, summarize and flag.

    Raises:
        UnknownKeyError: a key or metric that no record has.
    """
    entries = study.entries
    names = tuple(sorted({name for entry in entries for name in entry.numbers}))
    options = _checked(study, options, names)
    teachers = teacher_runs(entries)
    keys = _keys(study, teachers)
    with_stage = (STAGE,) if options.stage == ALL else ()
    own = (*keys.grouping, *(key for key in with_stage if key not in keys.grouping))
    by = own if options.by is None else tuple(dict.fromkeys((*options.by, *with_stage)))
    columns = {key: _column(study, key) for key in {*own, *by}}
    identities = [(e.schema, e.data, e.test, index in teachers) for index, e in enumerate(entries)]
    flags = flag(entries, options.metrics[0], _partition(columns, own, identities), teachers)
    latency = numbers.pick_latency(names)
    left_open = [key for key in own if key not in by]
    units = [(seed_text(e), *(columns[key][i] for key in left_open)) for i, e in enumerate(entries)]
    groups = group_entries(entries, [columns[key] for key in by], About(identities, flags, units))
    groups = mark_fronts(groups, options.metrics[0], latency)
    groups = sort_groups(groups, by, _sort_key(options, by, names), options.reverse)
    notes = _notes(study, groups, left_open, options.by is not None)
    return Comparison(study, options, by, keys, flags, tuple(groups), names, latency, notes)


def _keys(study: Study, teachers: Collection[int]) -> Keys:
    """Keys of the competitors: how a teacher among the records was trained is no column of theirs."""
    kept = [entry for index, entry in enumerate(study.entries) if index not in teachers] or study.entries
    keys = analyse(study.base, [e.config for e in kept], [seed_text(e) for e in kept], study.swept)
    everywhere = {key: values(key, study.base, [e.config for e in study.entries]) for key in keys.differing}
    return replace(keys, differing=everywhere)


def _checked(study: Study, options: Options, names: tuple[str, ...]) -> Options:
    """`options` with full key names."""
    known = {*study.base, *(key for entry in study.entries for key in entry.config), STAGE, "strategy"}
    if options.stage not in (FINAL, ALL) and options.stage not in study.stages:
        full_key(options.stage, study.stages, "--stage")
    if options.metrics:
        metrics = tuple(full_key(name, names, "--metric") for name in options.metrics)
    else:
        metrics = (_usual_metric(study, names),)
    by = None if options.by is None else tuple(full_key(key, known, "--by") for key in options.by)
    return replace(options, by=by, metrics=metrics)


def _usual_metric(study: Study, names: Sequence[str]) -> str:
    """On test, the metric by which most records select, or the like of it where no record has that; a set of failures
    still gets its table."""
    monitor = Counter(entry.monitor for entry in study.entries).most_common(1)
    usual = f"test_{monitor[0][0] if monitor else 'accuracy'}"
    own = [
        name for name in names if name.endswith(usual.removeprefix("test")) and not name.startswith("teacher")
    ]
    return usual if usual in names or not own else own[0]


def _sort_key(options: Options, by: Sequence[str], names: Sequence[str]) -> str:
    if options.sort is None:
        return options.metrics[0]
    return full_key(options.sort, {*by, *names, "n"}, "--sort")


def _column(study: Study, key: str) -> list[str]:
    if key == STAGE:
        return [entry.stage for entry in study.entries]
    return values(key, study.base, [entry.config for entry in study.entries])


def _partition(
    columns: Mapping[str, Sequence[str]], by: Sequence[str], identities: Sequence[tuple[object, ...]]
) -> list[int]:
    found: dict[tuple[object, ...], int] = {}
    rows = zip(identities, *(columns[key] for key in by), strict=True)
    return [found.setdefault(row, len(found)) for row in rows]


def _notes(study: Study, groups: Sequence[Group], left_open: Sequence[str], chosen: bool) -> tuple[str, ...]:
    notes = []
    mixed = [key for key in left_open if any(len(set(_members(study, key, group))) > 1 for group in groups)]
    if chosen and mixed:
        notes.append(f"Groups mix records that differ in {', '.join(mixed)}: n counts runs, not seeds.")
    identities = {group.identity[:-1] for group in groups}
    if len(identities) > 1:
        notes.append(
            f"{len(identities)} kinds of records (data, test set, schema) that must not be compared."
        )
    return tuple(notes)


def _members(study: Study, key: str, group: Group) -> list[str]:
    if key == STAGE:
        return [study.entries[index].stage for index in group.members]
    return [study.value(study.entries[index], key) or ABSENT for index in group.members]
