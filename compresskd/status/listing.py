"""`compresskd ls`: the runs below folders that fit conditions."""

from __future__ import annotations

import argparse
import operator
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compresskd.compare.keys import UnknownKeyError, full_key
from compresskd.compare.study import Entry, Study, load
from compresskd.compare.tables import Cell, Column, Table
from compresskd.compare.terminal import render, width_of
from compresskd.run import FAILED, FINISHED, INTERRUPTED, RUNNING
from compresskd.run.flat import canonical
from compresskd.run.lock import is_held
from compresskd.status.progress import KILLED

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_CONDITION = re.compile(r"([\w.@/-]+)\s*(<=|>=|!=|=|<|>)\s*(.*)")
_OF_A_RUN = ("status", "run", "created", "updated")
_LATEST = "updated"


class ConditionError(ValueError):
    """A condition that cannot be read, or that no run can be judged by."""


@dataclass(frozen=True)
class Condition:
    """`key OP value`: a key of the configuration, a number of the record, or what a run says of itself."""

    key: str
    sign: str
    value: str

    @classmethod
    def of(cls, text: str) -> Condition:
        """Raises argparse's error for what is none."""
        found = _CONDITION.fullmatch(text.strip())
        if found is None:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected KEY=VALUE, or with !=, <, <=, > or >=")
        if found[2] in _COMPARE and _number(found[3]) is None:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a number behind {found[2]}")
        return cls(*found.groups())

    def holds(self, text: str | None) -> bool:
        """Whether it does for the value of a run, which may have none: then only != holds."""
        if self.sign in _COMPARE:
            number = None if text is None else _number(text)
            wanted = _number(self.value)
            return number is not None and wanted is not None and _COMPARE[self.sign](number, wanted)
        equal = text is not None and _plain(text) in map(_plain, self.value.split(","))
        return equal == (self.sign == "=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    add = parser.add_argument
    add("dirs", nargs="*", type=Path, default=[Path("outputs")], metavar="DIR", help="searched at any depth (default "
        "outputs)")  # fmt: skip
    add("--where", action="append", type=Condition.of, default=[], metavar="KEY=VALUE", help="runs with that value of "
        "a key (one of several: A,B), 'KEY<=NUMBER' and the like; repeated: all of them")  # fmt: skip
    for state in (FINISHED, FAILED, RUNNING, INTERRUPTED, KILLED):
        add(f"--{state}", dest="states", action="append_const", const=state, help=f"runs that are {state}")
    add(
        "--sort",
        default=_LATEST,
        metavar="KEY",
        help="a key or number, smallest first (default: updated, last first)",
    )
    add("--reverse", action="store_true", help="turn the order round")
    add("--limit", type=_count, metavar="N", help="the first N")
    add("--paths", action="store_true", help="print folders alone, one a line, for other commands")


def run(arguments: argparse.Namespace) -> int:
    """List runs; the exit code is 1 where none fits, 2 for a key that no run has."""
    study = load(arguments.dirs)
    for problem in study.problems:
        print(f"Not read: {problem.path}: {problem.reason}", file=sys.stderr)  # noqa: T201 - this is a command line
    entries = [_with_state(entry) for entry in study.entries]
    try:
        chosen = _chosen(study, entries, arguments)
    except ConditionError as error:
        print(f"compresskd: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if arguments.paths:
        text = "".join(f"{entry.directory}\n" for entry in chosen)
    else:
        shown = _shown_keys(study, arguments)
        notes = [f"{len(chosen)} of {len(entries)} runs"]
        text = render(
            notes, [_table(study, chosen, shown)], max_rows=0, width=width_of(sys.stdout), colour=False
        )
    sys.stdout.write(text)
    return 0 if chosen else 1


def _with_state(entry: Entry) -> Entry:
    dead = entry.status == RUNNING and not is_held(entry.directory)
    return replace(entry, status=KILLED) if dead else entry


def _chosen(study: Study, entries: Sequence[Entry], arguments: argparse.Namespace) -> list[Entry]:
    known = _known(study, entries)
    conditions = [replace(each, key=_key(each.key, known, "--where")) for each in arguments.where]
    order = _key(arguments.sort, known, "--sort")
    kept = [
        entry
        for entry in entries
        if (not arguments.states or entry.status in arguments.states)
        and all(condition.holds(_value(study, entry, condition.key)) for condition in conditions)
    ]
    kept.sort(
        key=lambda entry: _order(_value(study, entry, order)), reverse=(order == _LATEST) != arguments.reverse
    )
    return kept[: arguments.limit]


def _known(study: Study, entries: Sequence[Entry]) -> set[str]:
    keys = {key for entry in entries for key in (*entry.config, *entry.numbers)}
    return {*study.base, *keys, *_OF_A_RUN}


def _key(wanted: str, known: set[str], option: str) -> str:
    if len(known) == len(_OF_A_RUN):  # there is no run
        return wanted
    try:
        return full_key(wanted, known, option)
    except UnknownKeyError as error:
        raise ConditionError(str(error)) from error


def _value(study: Study, entry: Entry, key: str) -> str | None:
    if key in _OF_A_RUN:
        return getattr(entry, key)
    number = entry.numbers.get(key)
    return study.value(entry, key) if number is None else canonical(number)


def _shown_keys(study: Study, arguments: argparse.Namespace) -> list[str]:
    """Besides the fixed columns: keys that were typed and differ, and what is asked for."""
    asked = [*(each.key for each in arguments.where), arguments.sort]
    known = _known(study, study.entries)
    differing = [key for key in study.swept if len({study.value(entry, key) for entry in study.entries}) > 1]
    named = [*differing, *(_key(each, known, "") for each in asked)]
    fixed = {*_OF_A_RUN, "strategy", "outputs_dir", "tracker"}
    return [
        key for key in dict.fromkeys(named) if key not in fixed and not key.startswith(("hydra.", "tracker."))
    ]


def _table(study: Study, entries: Sequence[Entry], keys: Sequence[str]) -> Table:
    columns = [
        Column("run"),
        Column("status"),
        Column("strategy"),
        *map(Column, keys),
    ]
    columns += [
        Column("validation", True),
        Column("test", True),
        Column("bytes", True),
        Column("updated"),
        Column("error"),
    ]
    rows = []
    for entry in entries:
        judged = [entry.numbers.get(f"{split}_{entry.monitor}") for split in ("validation", "test")]
        texts = [entry.run, entry.status, entry.strategy, *(_value(study, entry, key) or "" for key in keys)]
        texts += ["" if value is None else f"{value:.4g}" for value in judged]
        texts += [f"{size:,.0f}" if (size := entry.numbers.get("file_bytes")) is not None else ""]
        texts += [entry.updated[:16].replace("T", " "), (entry.error or "")[:60]]
        rows.append(tuple(map(Cell, texts)))
    return Table("", tuple(columns), tuple(rows))


def _order(text: str | None) -> tuple[bool, float, str]:
    """Numbers by size, then texts, then those that have none."""
    number = None if text is None else _number(text)
    return text is None, float("inf") if number is None else number, text or ""


def _plain(text: str) -> str:
    number = _number(text)
    return canonical(number) if number is not None else text.strip().lower()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
