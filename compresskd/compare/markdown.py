"""The comparison as Markdown, for a README or an issue."""

import re

from compresskd.compare.output import MARKS
from compresskd.compare.tables import Table
from compresskd.compare.terminal import printable

_SPECIAL = re.compile(
    r"([\\`*_{}\[\]<>|#~!&$]|(?<=\])\()"
)  # a bracket also where it would follow a link's text


def markdown(title: str, notes: list[str], tables: list[Table], max_rows: int = 200) -> str:
    """A document of pipe tables; of a longer table the first `max_rows` rows and a note."""
    parts = [MARKS["markdown"], f"# {escape(title)}", *(f"{escape(note)}" for note in notes)]
    for table in tables:
        if table.rows:
            parts += [f"## {escape(table.title)}", _table(table, max_rows), *(escape(n) for n in table.notes)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is: neither markup nor HTML nor a break of the table's row."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


def _table(table: Table, max_rows: int) -> str:
    lines = [
        "| " + " | ".join(escape(column.name) for column in table.columns) + " |",
        "|" + "|".join(" ---: " if column.numeric else " --- " for column in table.columns) + "|",
    ]
    for row in table.rows[:max_rows]:
        texts = (f"**{escape(c.text)}**" if c.kind == "front" else escape(c.text) for c in row)
        lines.append("| " + " | ".join(texts) + " |")
    if len(table.rows) > max_rows:
        lines.append(f"\nThe first {max_rows} of {len(table.rows)} rows.")
    return "\n".join(lines)
