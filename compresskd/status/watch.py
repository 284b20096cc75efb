"""`compresskd watch`: the table of many runs, drawn again and again in a terminal, printed once elsewhere."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from compresskd.compare.terminal import PLAIN_WIDTH, printable
from compresskd.run import FAILED, FINISHED, INTERRUPTED, RUNNING
from compresskd.status.progress import DAMAGED, KILLED, STATES, Progress, Watched, find_runs

_STYLES = {
    RUNNING: "cyan",
    FAILED: "red",
    KILLED: "red",
    DAMAGED: "red",
    INTERRUPTED: "yellow",
    FINISHED: "green",
}
_AROUND = 6  # lines of a terminal beside the rows
_LONGEST_NOTE = 60


def run(roots: Sequence[Path], *, once: bool, every: float) -> int:
    """Watch until Ctrl-C; where there is no terminal, or with `once`, print one table of all runs.

    Returns:
        The exit code: 1 where one table was asked for and there is no run.
    """
    console, known = Console(highlight=False), dict[Path, Watched]()
    if once or not console.is_terminal:
        console = console if console.is_terminal else Console(highlight=False, width=_width())
        found = _look(roots, known)
        console.print(_view(found, roots, len(found)))
        return 0 if found else 1
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            found = _look(roots, known)
            live.update(_view(found, roots, max(console.height - _AROUND, 3)), refresh=True)
            time.sleep(every)
    return 0


def _width() -> int:
    """Of a file or a pipe: whole rows."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else PLAIN_WIDTH


def _look(roots: Sequence[Path], known: dict[Path, Watched]) -> list[Progress]:
    found = [progress for run in find_runs(roots, known) if (progress := run.look()) is not None]
    return sorted(found, key=lambda progress: (_rank(progress.state), -progress.updated))


def _rank(state: str) -> int:
    return STATES.index(state) if state in STATES else len(STATES)  # a state of a later version


def _view(found: Sequence[Progress], roots: Sequence[Path], most: int) -> Group:
    """The rows that there is room for, those that go on and those that failed first; a line that counts all."""
    if not found:
        return Group(Text(f"no run yet in {', '.join(printable(str(root)) for root in roots)}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "stage"):
        table.add_column(name, overflow="fold")
    for name in ("epoch", "metric", "best", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    above = os.path.commonpath([progress.directory.absolute().parent for progress in found])
    for progress in found[:most]:
        table.add_row(*_cells(progress, above))
    counts = Counter(progress.state for progress in found)
    summary = ", ".join(f"{counts[state]} {state}" for state in sorted(counts, key=_rank))
    hidden = f" ({len(found) - most} not shown)" if len(found) > most else ""
    return Group(table, Text(f"{len(found)} runs: {summary}{hidden}"))


def _cells(progress: Progress, above: str) -> list[Text]:
    name = os.path.relpath(progress.directory.absolute(), above)
    stages = f"{progress.number}/{progress.stages} " if progress.stages else ""
    note = " ".join(progress.note.split())
    shown = progress.monitor.shown if progress.monitor else str
    cells = (
        printable(name),
        progress.state,
        f"{stages}{printable(progress.stage)}",
        f"{progress.epoch}/{progress.epochs}" if progress.epochs else "",
        "" if progress.value is None else shown(progress.value),
        "" if progress.best is None else shown(progress.best),
        "" if progress.seconds_left is None else duration(progress.seconds_left),
        printable(note if len(note) <= _LONGEST_NOTE else f"{note[: _LONGEST_NOTE - 1]}…"),
    )
    styles = {1: _STYLES.get(progress.state, "")}
    return [Text(cell, style=styles.get(position, "")) for position, cell in enumerate(cells)]


def duration(seconds: float) -> str:
    """A time as people read it: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
