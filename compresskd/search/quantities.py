"""What a search judges a trial by: a metric of validation or a size, to be made best, or kept within a bound."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compresskd.metric import LOSS, Metric
from compresskd.options import OptionError, did_you_mean
from compresskd.run import Record
from compresskd.run.record import metrics_of

SIZES = ("bytes", "parameters", "macs", "latency")  # of each, less is better
_KEYS = {"bytes": ("size", "file_bytes"), "parameters": ("size", "num_parameters"), "macs": ("size", "macs"),
         "latency": ("latency_ms", "batch_1")}  # fmt: skip
_UNITS = {"latency": " ms"}
_BOUND = re.compile(
    r"(?P<name>\w+)\s*(?P<sign><=|>=)\s*(?P<number>[-+]?[\d.,_]+(?:e[-+]?\d+)?)\s*(?P<percent>%?)"
)
_EXAMPLES = "such as 'accuracy>=-1.0' (a point below the teacher), 'bytes<=50000' or 'perplexity<=+2%'"
_ROUNDING = 1e-9

Figures = Mapping[str, float]  # name of a quantity -> value; fractions of samples as fractions


@dataclass(frozen=True)
class Quantity:
    """A figure of a trial: a metric on the validation split, or a size.

    Attributes:
        name: as users write it.
        metric: of the task; None of a size.
    """

    name: str
    metric: Metric | None = None

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""
        return self.metric is not None and self.metric.higher_is_better

    @property
    def is_points(self) -> bool:
        """Whether it is shown in percent, and differences of it are points."""
        return self.metric is not None and self.metric.percent

    def shown(self, value: float) -> str:
        """As people read it."""
        if self.metric is not None:
            return self.metric.shown(value)
        return f"{value:,.0f}" if self.name != "latency" else f"{value:.4g}{_UNITS[self.name]}"


@dataclass(frozen=True)
class Objective:
    """A quantity to be made as good as it can be; its direction is that of the quantity."""

    quantity: Quantity

    @property
    def words(self) -> str:
        """As it is asked for."""
        return f"{'maximize' if self.quantity.higher_is_better else 'minimize'} {self.quantity.name}"

    def cost(self, figures: Figures) -> float:
        """The figure, less is better."""
        value = figures[self.quantity.name]
        return -value if self.quantity.higher_is_better else value


@dataclass(frozen=True)
class Bound:
    """A quantity to be kept on one side of a number.

    Attributes:
        number: of a quantity in percent, a fraction; a relative one of any other is a share of the teacher's.
        relative: whether it is counted from the teacher's figure.
        text: as it was written.
    """

    quantity: Quantity
    number: float
    relative: bool
    text: str

    def limit(self, teacher: Figures) -> float:
        """The number itself, given the figures of the teacher.

        Raises:
            OptionError: it is relative, and the teacher has no such figure.
        """
        if not self.relative:
            return self.number
        own = teacher.get(self.quantity.name)
        if own is None:
            raise OptionError(
                self.text, "no such figure of a teacher", "an unsigned number: there is none to start from"
            )
        return own + self.number if self.quantity.is_points else own * (1 + self.number)

    def excess(self, figures: Figures, teacher: Figures) -> float:
        """By how much it is missed, as a share of the limit (of a fraction: as it is); 0 or less where it is met."""
        limit = self.limit(teacher)
        over = figures[self.quantity.name] - limit
        over = -over if self.quantity.higher_is_better else over
        over -= _ROUNDING * max(1.0, abs(limit))
        return over if self.quantity.is_points else over / max(abs(limit), 1e-12)

    def shown(self, teacher: Figures) -> str:
        """The bound with its number, as people read it."""
        sign = ">=" if self.quantity.higher_is_better else "<="
        return f"{self.quantity.name} {sign} {self.quantity.shown(self.limit(teacher))}"


def known(task: Mapping[str, Any]) -> dict[str, Quantity]:
    """All quantities of a task, as its record describes it."""
    metrics = {LOSS.name: LOSS, **metrics_of(task)}
    return {name: Quantity(name, metric) for name, metric in metrics.items()} | {
        n: Quantity(n) for n in SIZES
    }


def quantity(name: str, key: str, quantities: Mapping[str, Quantity]) -> Quantity:
    """The quantity of this name.

    Raises:
        OptionError: of `key`: there is none, or it is one of the test split, which decides nothing.
    """
    if name.startswith("test_"):
        bare = name.removeprefix("test_")
        raise OptionError(
            key, name, f"a figure of validation: write {bare}; the test is scored once, at the end"
        )
    bare = name.removeprefix("validation_")
    if bare not in quantities:
        raise OptionError(key, name, f"one of {', '.join(quantities)}{did_you_mean(bare, quantities)}")
    return quantities[bare]


def objective(name: str, maximize: bool, key: str, quantities: Mapping[str, Quantity]) -> Objective:
    """The objective of a quantity.

    Raises:
        OptionError: of `key`: no such quantity, or made best in the wrong direction.
    """
    found = quantity(name, key, quantities)
    if found.higher_is_better != maximize:
        other, better = ("maximize", "more") if found.higher_is_better else ("minimize", "less")
        said = key.replace("minimize" if maximize is False else "maximize", other)
        raise OptionError(key, name, f"{said} {found.name}: {better} of it is better")
    return Objective(found)


def bound(text: str, key: str, quantities: Mapping[str, Quantity]) -> Bound:
    """The bound that is written so: a signed number counts from the teacher's figure, an unsigned one is the limit.

    Raises:
        OptionError: of `key`: it is none.
    """
    written = _BOUND.fullmatch(text.strip())
    if written is None:
        quoted = (
            "; in quotes: unquoted, the shell takes < and > for itself" if not re.search("[<>]", text) else ""
        )
        raise OptionError(key, text or "nothing", f"NAME<=NUMBER or NAME>=NUMBER, {_EXAMPLES}{quoted}")
    found = quantity(written["name"], key, quantities)
    if (written["sign"] == ">=") != found.higher_is_better:
        side = ">=" if found.higher_is_better else "<="
        raise OptionError(
            key, text, f"{found.name}{side}NUMBER: {'more' if side == '>=' else 'less'} of it is better"
        )
    try:
        number = float(written["number"].replace(",", "").replace("_", ""))
    except ValueError:
        raise OptionError(key, text, f"a number behind {written['sign']}") from None
    relative = written["number"][0] in "+-"
    if found.is_points:
        if not relative and not (1 < number <= 100 or number == 0):
            raise OptionError(
                key, text, f"percent: {found.name}>=95, or points from the teacher: {found.name}>=-1.0"
            )
        return Bound(found, number / 100, relative, text)
    if relative and not written["percent"]:
        raise OptionError(
            key, text, f"percent of the teacher's: {found.name}{written['sign']}{written['number']}%"
        )
    if written["percent"] and not relative:
        raise OptionError(
            key,
            text,
            f"a signed percentage ({found.name}{written['sign']}+{written['number']}%), or a number",
        )
    return Bound(found, number / 100 if relative else number, relative, text)


def figures(record: Record) -> dict[str, float]:
    """The figures of the final model of a finished run, on validation."""
    return _figures(record.stage(record.final) or {})


def teacher_figures(record: Record) -> dict[str, float]:
    """Those of its teacher; none where the run has none."""
    return _figures(record.teacher or {})


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    prefix = "validation_"
    found = {k.removeprefix(prefix): v for k, v in entry.get("metrics", {}).items() if k.startswith(prefix)}
    for name, (group, key) in _KEYS.items():
        found[name] = (entry.get(group) or {}).get(key)
    return {name: float(value) for name, value in found.items() if value is not None}
