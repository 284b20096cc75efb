"""`compresskd repeat`: run a record's configuration again from scratch, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compresskd.cli.endings import FAILURE
from compresskd.cli.execute import execute
from compresskd.reports.repeat import Row, compare_runs, surroundings
from compresskd.run import FINISHED, Record, RunDirectoryError, read_record
from compresskd.trust import granted


def repeat(directory: Path, into: Path | None, said: Sequence[str]) -> int:
    """Run again what `directory` holds, into a folder that is not there yet; 0 where all is equal, else 1.

    The teacher is trained anew below that folder, unless it came from given weights.

    Args:
        directory: a finished run.
        into: the folder; None takes a free name beside `directory`.
        said: packages that the user trusts.

    Raises:
        RunDirectoryError: the run is not finished, its data are no longer what they were, or `into` is taken.
        ConfigError: the configuration cannot be built any more.
    """
    record = read_record(directory)
    if record.status != FINISHED:
        raise RunDirectoryError(
            f"{directory} is not finished (it is {record.status}), so there is nothing to compare with; "
            f"resume it by: compresskd resume {directory}"
        )
    again = _free(directory, into)
    from compresskd.config.recorded import build_recorded

    config = record.config | {"outputs_dir": str(again), "tracker": {}}
    experiment = build_recorded(config, record.overrides, trust=granted(directory, record, said))
    _check_same_data(directory, record, experiment)
    execute(experiment, again, unique=False)
    return _judge(directory, again)


def _free(directory: Path, into: Path | None) -> Path:
    """Where to run: `into`, which must not be there yet, or a name beside `directory` that nobody has."""
    if into is not None:
        if into.exists() or into.is_symlink():
            raise RunDirectoryError(
                f"{into} is there already, and nothing is overwritten; write another --into DIR2"
            )
        return into.absolute()
    beside = directory.absolute()
    number, candidate = 1, beside.with_name(f"{beside.name}_repeat")
    while candidate.exists() or candidate.is_symlink():
        number += 1
        candidate = beside.with_name(f"{beside.name}_repeat_{number}")
    return candidate


def _check_same_data(directory: Path, record: Record, experiment: Any) -> None:
    then, now = record.data.get("fingerprint"), experiment.data.fingerprint
    if then == now:
        then, now = record.data.get("unlabelled"), experiment.data.unlabelled_facts
    if then != now:
        raise RunDirectoryError(
            f"{directory} was made on other data (fingerprint {then} then, {now} now); put the data back as it was"
        )


def _judge(one: Path, other: Path) -> int:
    from rich.console import Console

    rows = compare_runs(one, other)
    Console().print(_table(rows))
    if all(row.equal for row in rows):
        print(f"{other} repeats {one}: all is equal, bit for bit")
        return 0
    print(f"{other} does not repeat {one}")
    for reason in surroundings(read_record(one), read_record(other)):
        print(reason)
    return FAILURE


def _table(rows: Sequence[Row]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("")
    table.add_column("repeated")
    table.add_column("first difference")
    for row in rows:
        count = "equal" if row.equal else f"{len(row.found)} different"
        table.add_row(row.what, count, Text(row.found[0] if row.found else ""))  # Text: values are no markup
    return table
