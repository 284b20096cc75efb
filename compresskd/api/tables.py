"""Rows of plain values, as a table where pandas is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def table_of(rows: Sequence[Row], *, as_rows: bool = False) -> Any:
    """A pandas DataFrame of the rows; the rows themselves without pandas, or `as_rows`."""
    if not as_rows:
        try:
            from pandas import DataFrame
        except ImportError:
            return list(rows)
        return DataFrame(rows)
    return list(rows)


def rows_of(table: Any) -> list[Row]:
    """The rows of such a table."""
    return table if isinstance(table, list) else table.to_dict("records")
