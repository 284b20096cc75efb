"""The comparison on a terminal, by rich: as many rows and columns as are readable, and a note of the rest."""

import io
import os
import shutil
from collections.abc import Sequence

from compresskd.compare.tables import Table

PLAIN_WIDTH = 220  # without a terminal nobody reads at 80 columns: files and pipes get whole rows
_STYLES = {
    "front": "bold green",
    "warning": "yellow",
    "missing": "dim",
    "significant": "bold",
    "reference": "cyan",
}


def render(notes: Sequence[str], tables: Sequence[Table], *, max_rows: int, width: int, colour: bool) -> str:
    """Tables as text of at most `width` columns; `max_rows` 0 shows every row."""
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
        emoji=False,
    )
    for note in notes:
        console.print(Text(printable(note)))
    for table in tables:
        if table.rows:
            console.print()
            _print_table(console, table, max_rows, width)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _print_table(console, table: Table, max_rows: int, width: int) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = table.rows[:max_rows] if max_rows else table.rows
    shown = _fitting(table, rows, width)
    drawn = RichTable(box=box.SIMPLE, pad_edge=False, title=Text(table.title), title_justify="left")
    for index in shown:
        column = table.columns[index]
        numeric = "right" if column.numeric else "left"
        drawn.add_column(Text(column.name), justify=numeric, no_wrap=column.numeric, overflow="fold")
    for row in rows:
        drawn.add_row(
            *(Text(printable(row[index].text), style=_STYLES.get(row[index].kind, "")) for index in shown)
        )
    console.print(drawn)
    hidden = [table.columns[index].name for index in _filled(table, rows) if index not in shown]
    if hidden:
        console.print(Text(f"Hidden for want of width: {', '.join(hidden)} (see --html, --csv)."))
    if len(rows) < len(table.rows):
        rest = len(table.rows) - len(rows)
        console.print(Text(f"{rest} further rows not shown (--rows 0 shows all; --html, --csv hold them)."))
    for note in table.notes:
        console.print(Text(printable(note)))


def _fitting(table: Table, rows: Sequence[Sequence], width: int) -> list[int]:
    """Positions of the columns that fit: all, or only the essential ones, and never empty ones."""
    filled = _filled(table, rows)

    def needed(columns: Sequence[int]) -> int:
        widest = (
            max(len(table.columns[i].name), *(min(len(row[i].text), 40) for row in rows)) for i in columns
        )
        return sum(widest) + 3 * len(columns)

    chosen = list(filled)
    for index in reversed(filled):
        if needed(chosen) <= width:
            break
        if not table.columns[index].essential:
            chosen.remove(index)
    return chosen


def _filled(table: Table, rows: Sequence[Sequence]) -> list[int]:
    count = range(len(table.columns))
    return [index for index in count if any(row[index].text not in ("", "–") for row in rows)]


def printable(text: str) -> str:
    """Text without control characters: a folder's name must not steer the terminal."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in safe)


def width_of(stream) -> int:
    """Columns of the terminal behind a stream; PLAIN_WIDTH where there is none."""
    if not stream.isatty() and "COLUMNS" not in os.environ:
        return PLAIN_WIDTH
    return max(40, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)
