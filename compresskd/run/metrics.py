"""metrics.jsonl: one line an epoch, appended while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compresskd.run.errors import RunDirectoryError
from compresskd.run.files import read_bytes

_AT_MOST = 2**26  # bytes: a hundred thousand epochs


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines, each with `stage` and `epoch`; without the last one where a killed process wrote half of it.

    Raises:
        RunDirectoryError: another line is none that a run writes.
    """
    *lines, torn = read_bytes(path, at_most=_AT_MOST).decode("utf-8", "replace").split("\n")
    read = [_line(line) for line in lines]
    for number, values in enumerate(read, 1):
        if values is None:
            raise RunDirectoryError(
                f"{path}: line {number} is no epoch of a run ({lines[number - 1][:40]!r}); "
                "remove that line, or the file"
            )
    last = _line(torn)
    return [values for values in (*read, last) if values is not None]


def _line(text: str) -> dict[str, Any] | None:
    try:
        values = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    is_epoch = isinstance(values, dict) and type(values.get("epoch")) is int
    return values if is_epoch and isinstance(values.get("stage"), str) else None
