"""Compression ratios of stored bytes as products: student x factorization x bits x coding."""

from math import prod

from compresskd.compare.comparison import Comparison
from compresskd.compare.grouping import Group
from compresskd.compare.tables import Cell, Column, Table, value_cell
from compresskd.run.factors import FACTORS

PREFIX = "factor_"
_NOTE = (
    "compression = student x factorization x bits x coding, of the bytes of the whole file. student: teacher / dense "
    "student in floating point; factorization: that / with factorized layers; bits: that / with packed integers; "
    "coding: that / entropy-coded. Geometric means over the runs of a group; without a teacher the ratio is of the "
    "dense student."
)


def factor_table(comparison: Comparison) -> Table:
    """One row a group: the ratio and its factors; empty where nothing but the student makes models smaller."""
    found = [(group, _factors(comparison, group)) for group in comparison.groups]
    if not any(abs(value - 1) > 0.01 for _, own in found for name, value in own.items() if name != "student"):
        return Table("Compression by factor", (), ())
    names = [name for name in FACTORS if any(name in own for _, own in found)]
    rows = []
    for group, own in found:
        if own:
            keys = [value_cell(text) for text in group.values] or [Cell(comparison.label(group))]
            rows.append((*keys, _cell(prod(own.values())), *(_cell(own.get(name)) for name in names)))
    columns = (
        *(Column(key) for key in comparison.by or ("strategy",)),
        Column("compression (bytes)", True),
        *(Column(name, True) for name in names),
    )
    return Table("Compression by factor", columns, tuple(rows), (_NOTE,))


def _factors(comparison: Comparison, group: Group) -> dict[str, float]:
    """Geometric means: then the product of the means is the mean of the products."""
    measured = [entry.numbers for entry in comparison.entries(group.counted)]
    values = {name: [own[PREFIX + name] for own in measured if PREFIX + name in own] for name in FACTORS}
    return {name: prod(own) ** (1 / len(own)) for name, own in values.items() if own}


def _cell(value: float | None) -> Cell:
    return (
        Cell("–", None, "missing")
        if value is None
        else Cell(f"{value:.3g}" if value < 100 else f"{value:.0f}", value)
    )
