"""The space of a search: keys with ranges of values, `rank=int(4,64)`, as they are written on the command line."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compresskd.options import OptionError, raise_all

Point = Mapping[str, str]  # key -> value, as it is written behind KEY=
_WRITTEN = re.compile(r"(?P<key>[^=\s]+)=(?P<kind>int|float|log|choice)\((?P<inner>.*)\)", re.DOTALL)
_DIGITS = 4  # of a number that is no whole one: what lies closer than that makes no difference to a training
_FORMS = {
    "int": "int(LOW,HIGH), int(LOW,HIGH,STEP) or int(LOW,HIGH,log)",
    "float": "float(LOW,HIGH), float(LOW,HIGH,STEP) or float(LOW,HIGH,log)",
    "log": "log(LOW,HIGH)",
    "choice": "choice(A,B,...)",
}
_MOST_LISTED = 10_000  # points


@dataclass(frozen=True)
class Choice:
    """One of a few values, each as it is written."""

    key: str
    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are checked before a search begins: here all."""
        return self.values

    def text(self, value: object) -> str:
        """A value as it is written."""
        return str(value)

    def read(self, text: str) -> str | None:
        """The value that is written so; None where it is none of these."""
        return text if text in self.values else None

    def listed(self) -> Sequence[str]:
        """All values."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included; every `step` of it, where there is one, or by its logarithm."""

    key: str
    low: float
    high: float
    whole: bool
    step: float | None = None
    log: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are checked before a search begins: the smallest and the largest."""
        return self.text(self.low), self.text(self.high)

    def text(self, value: float) -> str:
        """A value as it is written: of one that is no whole number four digits."""
        if self.whole:
            return str(round(value))
        return repr(min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high))

    def read(self, text: str) -> float | None:
        """The value that is written so; None where it is no number of this range."""
        try:
            value = float(text)
        except ValueError:
            return None
        if self.whole and not value.is_integer():
            return None
        if self.step is not None and abs((value - self.low) / self.step % 1 - 0.5) < 0.5 - 1e-6:
            return None
        return value if self.low <= value <= self.high else None

    def listed(self) -> Sequence[str] | None:
        """All values; None where there are too many to be tried one after another."""
        step = self.step or (1.0 if self.whole else None)
        count = 0 if step is None else int((self.high - self.low) / step + 1e-9) + 1
        if step is None or count > _MOST_LISTED:
            return None
        return [self.text(self.low + number * step) for number in range(count)]


Dimension = Choice | Range


def parse(words: Sequence[str]) -> tuple[list[Dimension], list[str]]:
    """The keys that vary, and the words that are ordinary overrides.

    Raises:
        OptionError: of every range that is none, or of a key that is there twice.
    """
    space: dict[str, Dimension] = {}
    rest, errors = [], []
    for word in words:
        written = _WRITTEN.fullmatch(word)
        if written is None:
            rest.append(word)
            continue
        key = written["key"]
        try:
            if key in space:
                raise OptionError(key, word.partition("=")[2], "one range of this key")
            space[key] = _dimension(key, written["kind"], _split(written["inner"]))
        except OptionError as error:
            errors.append(error)
    fixed = (word.partition("=") for word in rest)
    errors += [OptionError(key, value, "its range, or one value") for key, _, value in fixed if key in space]
    raise_all(errors)
    return list(space.values()), rest


def listed(space: Sequence[Dimension]) -> Iterator[Point] | None:
    """All points of a space; None where they are too many to be listed."""
    values = [dimension.listed() for dimension in space]
    if any(each is None for each in values) or math.prod(len(each or ()) for each in values) > _MOST_LISTED:
        return None
    keys = [dimension.key for dimension in space]
    return (dict(zip(keys, each, strict=True)) for each in itertools.product(*(v or () for v in values)))


def lines(point: Point) -> list[str]:
    """The overrides that a point stands for."""
    return [f"{key}={value}" for key, value in point.items()]


def _dimension(key: str, kind: str, parts: Sequence[str]) -> Dimension:
    got = f"{kind}({','.join(parts)})"
    if kind == "choice":
        if len(set(parts)) < max(2, len(parts)) or "" in parts:
            raise OptionError(key, got, "choice of two or more different values")
        return Choice(key, tuple(parts))
    by_log = kind == "log" or parts[2:] == ["log"]
    most = 2 if kind == "log" else 3
    try:
        numbers = [float(part) for part in parts if part != "log"]
    except ValueError:
        numbers = []
    is_whole = kind == "int"
    if len(numbers) < 2 or len(parts) > most or not all(map(math.isfinite, numbers)):
        raise OptionError(key, got, _FORMS[kind])
    if is_whole and not all(number.is_integer() for number in numbers):
        raise OptionError(key, got, "whole numbers")
    low, high, *step = numbers
    if not low < high:
        raise OptionError(key, got, "LOW below HIGH")
    if by_log and low <= 0:
        raise OptionError(key, got, "LOW above 0: its logarithm is taken")
    if step and not 0 < step[0] <= high - low:
        raise OptionError(key, got, f"a STEP above 0 and at most {high - low:g}")
    if step:  # the last step at or below HIGH
        high = low + int((high - low) / step[0] + 1e-9) * step[0]
    return Range(key, low, high, is_whole, step[0] if step else None, by_log)


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        depth += (sign in "([{") - (sign in ")]}") if not quote else 0
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]
