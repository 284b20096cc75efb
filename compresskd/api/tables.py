"""Rows of plain values, as a table where pandas is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def table_of(rows: Sequence[Row], *, as_rows: bool = False) -> Any:
    """A pandas DataFrame of the rows; the rows themselves without pandas, or `as_rows`."""
    if as_rows:
        return list(rows)
    try:
        from pandas import DataFrame
    except ImportError:
        return list(rows)
    return DataFrame(rows)
