"""The tables of a comparison as plain data; terminal, Markdown and HTML only differ in how they draw them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from compresskd.compare import numbers
from compresskd.compare.comparison import Comparison
from compresskd.compare.grouping import Group
from compresskd.compare.keys import ABSENT
from compresskd.compare.pairing import PairedTest, PairedTests
from compresskd.compare.statistics import Summary
from compresskd.compare.study import Entry

FRONT_LETTERS = {"file_bytes": "B", "macs": "M", "latency": "L"}
MAX_VALUES = 12


@dataclass(frozen=True, slots=True)
class Column:
    """`essential` columns stay when a terminal is too narrow for all."""

    name: str
    numeric: bool = False
    essential: bool = True
    help: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """`text` is shown, `order` is sorted by (None: last), `kind` tells writers how to emphasize."""

    text: str
    order: float | str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows of equal length; `notes` belong below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def group_table(comparison: Comparison, tests: PairedTests, every_number: bool = False) -> Table:
    """One row a group: its keys, runs, metrics with interval, costs, front and flags."""
    names = _shown_numbers(comparison, every_number)
    shared = _shared(comparison, names)
    names = [name for name in names if name not in shared]
    columns = [*(Column(key) for key in comparison.by or ("strategy",)), Column("n", numeric=True)]
    judged, costs = _split(comparison, names)
    for name in judged:
        columns += [
            Column(numbers.label(name), True),
            Column("± std", True),
            Column("95% interval", True, False),
        ]
    if tests.reference is not None:
        columns.append(Column("p (Holm)", True, help="paired bootstrap against the reference, after Holm"))
    columns.append(Column("front", help="Pareto fronts: B bytes, M MACs, L latency"))
    columns += [Column(numbers.label(name), True, name == "file_bytes") for name in costs]
    columns.append(Column("flags"))
    results = {id(test.group): test for test in tests.tests}
    rows = tuple(
        _group_row(comparison, group, names, tests, results.get(id(group))) for group in comparison.groups
    )
    equal = ", ".join(f"{numbers.label(name)} {text}" for name, text in shared.items())
    return Table("Results", tuple(columns), rows, (f"Equal in every group: {equal}.",) if equal else ())


def _shown_numbers(comparison: Comparison, every: bool) -> list[str]:
    first = list(comparison.options.metrics)
    usual = ["file_bytes", "model_bytes", "compression_file_bytes", "macs"]
    usual += filter(None, [comparison.latency])
    if every:
        usual = ["num_parameters", *usual, *comparison.names]
    present = {name for group in comparison.groups for name in group.summaries}
    return [*first, *(name for name in dict.fromkeys(usual) if name in present and name not in first)]


def _shared(comparison: Comparison, names: Sequence[str]) -> dict[str, str]:
    """Numbers that every group has alike need a line, not a column."""
    if len(comparison.groups) < 2:
        return {}
    shown = {
        name: {numbers.show(name, group.mean(name)) for group in comparison.groups} for name in names[1:]
    }
    return {name: next(iter(texts)) for name, texts in shown.items() if len(texts) == 1}


def _group_row(
    comparison: Comparison, group: Group, names: Sequence[str], tests: PairedTests, test: PairedTest | None
) -> tuple[Cell, ...]:
    keys = [value_cell(text) for text in group.values] or [Cell(comparison.label(group))]
    cells = [*keys, _count_cell(group)]
    judged, costs = _split(comparison, names)
    for name in judged:
        cells += _summary_cells(name, group.summaries.get(name))
    if tests.reference is not None:
        cells.append(_p_cell(group is tests.reference, test))
    cells.append(front_cell(group.fronts))
    cells += [number_cell(name, group.mean(name)) for name in costs]
    return (*cells, _flags_cell(comparison, group))


def _split(comparison: Comparison, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Numbers with their interval, and those shown as a mean only."""
    metrics = comparison.options.metrics
    return [name for name in names if name in metrics], [name for name in names if name not in metrics]


def _summary_cells(name: str, summary: Summary | None) -> list[Cell]:
    if summary is None:
        return [number_cell(name, None)] * 3
    low, high = summary.low, summary.high
    interval = (
        f"{numbers.show(name, low, True)} … {numbers.show(name, high, True)}" if low is not None else "–"
    )
    return [
        number_cell(name, summary.mean),
        number_cell(name, summary.std, spread=True),
        Cell(interval, low),
    ]


def value_cell(text: str) -> Cell:
    """A config value; numbers sort as numbers."""
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text, None if text == ABSENT else text)


def number_cell(name: str, value: float | None, spread: bool = False) -> Cell:
    """A measured number."""
    return Cell(numbers.show(name, value, spread), value, "" if value is not None else "missing")


def front_cell(fronts: Iterable[str]) -> Cell:
    """Which Pareto fronts a row is on, as letters."""
    letters = "".join(letter for cost, letter in FRONT_LETTERS.items() if cost in fronts)
    return Cell(f"★ {letters}" if letters else "", -float(len(letters)), "front" if letters else "")


def _count_cell(group: Group) -> Cell:
    n, total = len(group.counted), len(group.members)
    return Cell(str(n) if n == total else f"{n} of {total}", float(n), "" if n == total else "warning")


def _p_cell(is_reference: bool, test: PairedTest | None) -> Cell:
    if is_reference:
        return Cell("reference", None, "reference")
    if test is None:
        return Cell("not tested", None, "missing")
    if test.p_holm is None:
        return Cell("no pairs", None, "missing")
    return p_value_cell(test.p_holm)


def p_value_cell(p_value: float) -> Cell:
    """A p-value; those below 0.05 are emphasized."""
    text = "<0.0001" if p_value < 1e-4 else f"{p_value:.4f}" if p_value < 0.1 else f"{p_value:.2f}"
    return Cell(text, p_value, "significant" if p_value < 0.05 else "")


def _flags_cell(comparison: Comparison, group: Group) -> Cell:
    found = Counter(code for index in group.members for code in {f.code for f in comparison.flags[index]})
    texts = [code if times == len(group.members) else f"{times} {code}" for code, times in found.items()]
    return Cell(", ".join(texts), float(-sum(found.values())), "warning" if texts else "")


def paired_table(comparison: Comparison, tests: PairedTests) -> Table:
    """One row a paired test against the reference."""
    unit = _unit(comparison)
    columns = (
        Column("group"),
        Column("pairs", True),
        Column("difference (points)" if unit.factor == 100 else "difference", True),
        Column("95% interval", True),
        Column("p", True, False),
        Column("p (Holm)", True),
        Column("over seeds", True, False, "mean difference and its Student interval over the seeds"),
        Column("McNemar", False, True, "seeds in which the exact test gives p < 0.05 after Holm"),
        Column("McNemar per seed", False, False, "only group right : only reference right, p after Holm"),
        Column("notes", False, False),
    )
    rows = tuple(_test_row(comparison, test, unit) for test in tests.tests)
    notes = []
    if tests.reference is not None:
        notes.append(f"Reference: {comparison.label(tests.reference)} — {tests.why}.")
        notes.append(f"Always about {unit.words}; positive: the group is better.")
    if tests.untested:
        notes.append(f"{tests.untested} groups further down were not tested; Holm counts them.")
    return Table("Paired tests", columns, rows, tuple(notes))


@dataclass(frozen=True)
class _Unit:
    """In what a difference is shown: times `factor`."""

    words: str
    factor: int

    def show(self, difference: float) -> str:
        return f"{100 * difference:+.2f}" if self.factor == 100 else f"{difference:+.4g}"


def _unit(comparison: Comparison) -> _Unit:
    scores = dict.fromkeys(comparison.study.entries[i].score for g in comparison.groups for i in g.counted)
    if scores.keys() <= {"correct predictions"}:
        return _Unit("test accuracy, in percentage points", 100)
    shares = all(score.startswith(("correct predictions", "the share of")) for score in scores)
    words = f"{' or '.join(scores)} of a test sample{', in percentage points' if shares else ''}"
    return _Unit(words, 100 if shares else 1)


def _test_row(comparison: Comparison, test: PairedTest, unit: _Unit) -> tuple[Cell, ...]:
    label = Cell(comparison.label(test.group), comparison.label(test.group))
    if test.bootstrap is None or test.over_seeds is None:
        return (
            label,
            Cell("0", 0.0),
            *[Cell("–", None, "missing")] * 7,
            Cell(f"no pairing: {test.impossible}"),
        )
    boot, seeds = test.bootstrap, test.over_seeds
    singles = "; ".join(
        f"{one.unit}: {one.group_only}:{one.reference_only} p {p_value_cell(one.p_holm).text}"
        for one in test.mcnemar
    )
    clear = sum(one.p_holm < 0.05 for one in test.mcnemar)
    return (
        label,
        Cell(str(test.pairs), float(test.pairs)),
        Cell(unit.show(boot.difference), boot.difference),
        Cell(f"{unit.show(boot.low)} … {unit.show(boot.high)}", boot.low),
        p_value_cell(boot.p_value),
        p_value_cell(test.p_holm if test.p_holm is not None else 1.0),
        Cell(
            unit.show(seeds.mean)
            if seeds.low is None or seeds.high is None
            else f"{unit.show(seeds.mean)} [{unit.show(seeds.low)}, {unit.show(seeds.high)}]",
            seeds.mean,
        ),
        Cell(f"{clear} of {len(test.mcnemar)}", float(clear)),
        Cell(singles),
        Cell("; ".join(test.notes)),
    )


def without(table: Table, name: str) -> Table:
    """The table less one column."""
    kept = [index for index, column in enumerate(table.columns) if column.name != name]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[index] for index in kept), rows=rows)


def difference_table(comparison: Comparison) -> Table:
    """The config keys that differ, their values and how they were used."""
    keys = comparison.keys
    roles = dict.fromkeys(comparison.by, "groups")
    roles |= {key: "follows" for key in keys.following if key not in roles}
    roles |= {key: "seed, path or the like" for key in keys.ignored if key not in roles}
    rows = []
    for key in (*comparison.by, *keys.grouping, *keys.following, *keys.ignored):
        if key in keys.differing and not any(row[0].text == key for row in rows):
            rows.append(
                (Cell(key, key), Cell(_values(keys.differing[key])), Cell(roles.get(key, "left open")))
            )
    columns = (Column("key"), Column("values (records)"), Column("use"))
    note = (
        "follows: adds no distinction to the keys that group. Every key that is not listed is equal in all."
    )
    return Table("Configuration differences", columns, tuple(rows), (note,))


def _values(column: Sequence[str]) -> str:
    found = sorted(Counter(column).items(), key=lambda item: (-item[1], item[0]))
    shown = [
        f"{text if len(text) <= 80 else text[:77] + '…'} ({times})" for text, times in found[:MAX_VALUES]
    ]
    return ", ".join(shown) + (f", and {len(found) - MAX_VALUES} more" if len(found) > MAX_VALUES else "")


def flag_table(comparison: Comparison) -> Table:
    """One row a flag of a record."""
    rows = [
        (Cell(entry.run, entry.run), Cell(entry.stage), Cell(one.code, one.code, "warning"), Cell(one.text))
        for entry, flags in zip(comparison.study.entries, comparison.flags, strict=True)
        for one in flags
    ]
    columns = (Column("run"), Column("stage", essential=False), Column("flag"), Column("what it means"))
    return Table("Flags", columns, tuple(rows))


def problem_table(comparison: Comparison) -> Table:
    """One row a path that gave nothing to compare."""
    rows = [
        (Cell(str(problem.path), str(problem.path)), Cell(problem.reason))
        for problem in comparison.study.problems
    ]
    return Table("Not read", (Column("path"), Column("why")), tuple(rows))


def record_table(comparison: Comparison) -> Table:
    """One row an entry: every run with its numbers and flags, in the order of the groups."""
    names = [name for name in _shown_numbers(comparison, every=True) if name in comparison.names]
    columns = (
        *(Column(name) for name in ("run", "status", "stage", "strategy", "seed")),
        *(Column(key) for key in comparison.by if key not in ("stage", "strategy", "seed")),
        *(Column(numbers.label(name), True) for name in names),
        Column("front"),
        Column("flags"),
    )
    rows = [
        _record_row(comparison, group, index, names) for group in comparison.groups for index in group.members
    ]
    return Table("Every run", columns, tuple(rows))


def _record_row(comparison: Comparison, group: Group, index: int, names: Sequence[str]) -> tuple[Cell, ...]:
    entry: Entry = comparison.study.entries[index]
    codes = ", ".join(flag.code for flag in comparison.flags[index])
    keys = [
        value_cell(text)
        for key, text in zip(comparison.by, group.values, strict=True)
        if key not in ("stage", "strategy", "seed")
    ]
    return (
        Cell(entry.run, entry.run),
        Cell(entry.status, entry.status, "" if entry.status == "finished" else "warning"),
        Cell(entry.stage or "–", entry.stage),
        Cell(entry.strategy, entry.strategy),
        Cell("–" if entry.seed is None else str(entry.seed), entry.seed),
        *keys,
        *(number_cell(name, entry.numbers.get(name)) for name in names),
        front_cell(group.fronts if index in group.counted else ()),
        Cell(codes, codes or None, "warning" if codes else ""),
    )
