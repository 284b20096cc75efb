"""Overrides as typed: read, and multiplied out into the jobs of a sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from compresskd.config.faults import Fault
from compresskd.config.proposal import instead

MOST_JOBS = 1000  # of one sweep: all of them are checked before the first runs

_LONGEST_SHOWN = 400  # characters of a line that cannot be read


def parse(lines: Sequence[str], loader: Any) -> tuple[list[Override], list[Fault]]:
    """The overrides that can be read, and a fault for each line that cannot.

    Args:
        loader: Hydra's, which `glob(...)` asks for the options of a group.
    """
    parser, parsed, faults = OverridesParser.create(loader), [], []
    for line in lines:
        override = _read(parser, line)
        if override is None and len(line) > _LONGEST_SHOWN:
            faults.append(Fault(f"{line[:40]}... ({len(line)} characters)", "is no override"))
        elif override is None:
            faults.append(
                Fault(line, f"is no override; {instead(line, lambda text: _is_override(parser, text))}")
            )
        elif override.key_or_group:
            parsed.append(override)
        else:
            faults.append(Fault(line, "is no override: no key before the '='; write key=value"))
    return parsed, faults


def _read(parser: OverridesParser, line: str) -> Override | None:
    try:
        return parser.parse_overrides([line])[0]
    except (HydraException, ValueError, RecursionError):  # numbers of many digits, brackets within brackets
        return None


def _is_override(parser: OverridesParser, line: str) -> bool:
    read = _read(parser, line)
    if read is None or not read.key_or_group:
        return False
    kind = {"[": list, "{": dict}.get(typed_value(read)[:1])
    return kind is None or read.is_sweep_override() or isinstance(read.value(), kind)


def sweep_faults(parsed: Sequence[Override]) -> list[Fault]:
    """A fault for each override that stands for several values, which one run cannot take."""
    return [
        Fault(p.key_or_group, f"came {typed_value(p)}, a sweep; write -m to run one job for each")
        for p in parsed
        if p.is_sweep_override()
    ]


def size_faults(parsed: Sequence[Override]) -> list[Fault]:
    """Faults of overrides that stand for no value at all, or that make a sweep of too many jobs together."""
    counts = {p.get_key_element(): _num_values(p) for p in parsed if p.is_discrete_sweep()}
    faults = [
        Fault(p.get_key_element(), _no_value(p)) for p in parsed if counts.get(p.get_key_element()) == 0
    ]
    total = math.prod(counts.values())
    if total <= MOST_JOBS:
        return faults
    many = ", ".join(f"{key}: {count:,} values" for key, count in counts.items() if count > 1)
    largest = max(counts, key=lambda key: counts[key])
    text = (
        f"{total:,} jobs ({many}); allowed: {MOST_JOBS:,} in one sweep; write fewer values, or several sweeps"
    )
    return [*faults, Fault(largest, text)]


def _num_values(p: Override) -> int:
    """How many values a sweep has, without making them."""
    if not p.is_range_sweep():
        return sum(1 for _ in p.sweep_iterator())
    sweep: Any = p.value()
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    if not (start.is_finite() and stop.is_finite() and step.is_finite() and step):
        return 0
    return max(0, math.ceil((stop - start) / step))


def _no_value(p: Override) -> str:
    is_glob = typed_value(p).startswith("glob")
    hint = "glob chooses among the files of a group, as strategy=glob(distill*) does; " if is_glob else ""
    return f"came {typed_value(p)}, which stands for no value; {hint}write {p.key_or_group}=A,B"


def jobs(parsed: Sequence[Override], loader: Any) -> Iterator[tuple[list[Override], str]]:
    """The overrides of each job, and what tells the job from the others (empty where there is but one)."""
    parser, choices, varying = OverridesParser.create(loader), [], []
    for p in parsed:
        if p.is_interval_sweep():  # only the sweeper knows its values; each job checks its own
            continue
        if p.is_sweep_override():
            key = p.get_key_element()
            values = [f"{key}={value}" for value in p.sweep_string_iterator()]
            choices.append(parser.parse_overrides(values))
            varying.append(len(choices) - 1)
        else:
            choices.append([p])
    for combination in itertools.product(*choices):
        yield list(combination), ",".join(combination[i].input_line or "" for i in varying)


def typed_value(override: Override) -> str:
    """What stands after the '=', as it was typed."""
    return (override.input_line or "").partition("=")[2]
