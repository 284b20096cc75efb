"""Columns of a table as numbers: standardized ones, and a place for each category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compresskd.data.notice import listed
from compresskd.options import OptionError

_MOST_CATEGORIES = 1000


@dataclass(frozen=True)
class Column:
    """One column of inputs: (value - mean) / std, or a 1 in the place of its category and else 0."""

    name: str
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """How many inputs it gives."""
        return 1 if self.categories is None else len(self.categories)

    def encode(self, values: Any) -> tuple[np.ndarray, int]:
        """[N, width] float32, and how many values are categories that are not known (all 0)."""
        if self.categories is None:
            return ((np.asarray(values, np.float64) - self.mean) / self.std).astype(np.float32)[:, None], 0
        places = {category: place for place, category in enumerate(self.categories)}
        found = np.array([places.get(str(value), -1) for value in values], np.int64)
        encoded = np.zeros((len(found), self.width), np.float32)
        known = found >= 0
        encoded[np.flatnonzero(known), found[known]] = 1
        return encoded, int((~known).sum())

    def describe(self) -> dict[str, Any]:
        """Plain values that make it again."""
        if self.categories is not None:
            return {"name": self.name, "categories": list(self.categories)}
        return {"name": self.name, "mean": self.mean, "std": self.std}


def encoded(columns: Sequence[Column], values: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, int]]:
    """[N, F] float32 of all columns, and how many values of a column are no known category."""
    parts = {column.name: column.encode(values[column.name]) for column in columns}
    unknown = {name: count for name, (_, count) in parts.items() if count}
    return np.concatenate([part for part, _ in parts.values()], axis=1), unknown


def inputs_of(preprocessing: Mapping[str, Any], rows: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """[N, F] float32 of columns of raw values, as the data made them; `preprocessing` is that of a table.

    Raises:
        ValueError: for other preprocessing, columns that are missing, and values that are.
    """
    if preprocessing.get("kind") != "table":
        raise ValueError(f"expected the preprocessing of a table, got {preprocessing.get('kind')!r}")
    columns = [
        Column(
            c["name"],
            c.get("mean", 0.0),
            c.get("std", 1.0),
            tuple(c["categories"]) if "categories" in c else None,
        )
        for c in preprocessing["columns"]
    ]
    missing = [column.name for column in columns if column.name not in rows]
    if missing:
        raise ValueError(f"expected columns {[column.name for column in columns]}, got none of {missing}")
    for column in columns:
        if any(value is None for value in rows[column.name]):
            raise ValueError(f"expected values in column {column.name}, got none in some row")
    return encoded(columns, rows)[0]


def column_of(
    name: str, table: Any, rows: np.ndarray, *, is_category: bool, where: str
) -> tuple[Column, str | None]:
    """The column `name` of an Arrow table by its training `rows`, and what is worth telling of it.

    Raises OptionError for what are no numbers, strings or truth values, and for too many categories.
    """
    if is_category or is_text(table[name].type):
        found = [str(value) for value in table[name].take(rows).unique().to_pylist()]
        if len(found) > _MOST_CATEGORIES:
            expected = (
                f"columns of at most {_MOST_CATEGORIES} categories; {name} has {len(found):,} in {where}"
            )
            raise OptionError("columns", name, f"{expected}: leave it out")
        return Column(name, categories=tuple(sorted(found))), None
    if not is_number(table[name].type):
        expected = f"a column of numbers, strings or true and false, not {table[name].type}, in {where}"
        raise OptionError("columns", name, f"{expected}: leave it out")
    values = numbers(table, name)[rows]
    std = float(values.std())
    told = None if std > 0 else f"column {name} is the same in every training row"
    return Column(name, float(values.mean()), std or 1.0), told


def numbers(table: Any, name: str) -> np.ndarray:
    """[N] float64 of a column of numbers or truth values."""
    import pyarrow

    return table[name].cast(pyarrow.float64()).to_numpy()


def check_values(table: Any, names: Sequence[str], where: str) -> None:
    """Raise ValueError for values that are missing or not finite, with the column and the rows."""
    for name in names:
        column = table[name]
        bad = np.asarray(column.is_null().to_numpy(zero_copy_only=False), bool)
        if not bad.any() and is_number(column.type):
            bad = ~np.isfinite(numbers(table, name))
        if bad.any():
            rows = [f"row {row}" for row in np.flatnonzero(bad)]
            raise ValueError(
                f"column {name} of {where} has no finite value in {len(rows):,} of {len(bad):,} rows (counted from "
                f"0): {listed(rows)}; fill them in, remove the rows, or leave the column out (data.columns)"
            )


def is_number(kind: Any) -> bool:
    """Whether an Arrow type is one of numbers or truth values."""
    from pyarrow import types

    return (
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    )


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of strings."""
    from pyarrow import types

    dictionary = types.is_dictionary(kind) and is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or dictionary
