"""Overrides as typed: read, and multiplied out into the jobs of a sweep."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from compresskd.config.faults import Fault

MOST_JOBS = 1000  # of one sweep: all of them are checked before the first runs
_LONGEST_SHOWN = 400  # characters of a line that cannot be read
_GRAMMAR = "https://hydra.cc/docs/1.3/advanced/override_grammar/basic"
_WORD = re.compile(r"""[^\s\[\]{},:"']+""")
_PLAIN = re.compile(r"[A-Za-z0-9_/\-\\+.$%*@?|]+")
_QUOTED_KEY = re.compile(r"""(["'])([^"']*)\1(\s*:)""")


def parse(lines: Sequence[str], loader: Any) -> tuple[list[Override], list[Fault]]:
    """The overrides that can be read, and a fault for each line that cannot.

    Args:
        loader: Hydra's, which `glob(...)` asks for the options of a group.
    """
    parser, parsed, faults = OverridesParser.create(loader), [], []
    for line in lines:
        override = _read(parser, line)
        if override is not None and override.key_or_group:
            parsed.append(override)
        elif len(line) > _LONGEST_SHOWN:
            faults.append(Fault(f"{line[:40]}... ({len(line)} characters)", "is no override"))
        else:
            faults.append(Fault(line, f"is no override; {_instead(parser, line)}"))
    return parsed, faults


def _read(parser: OverridesParser, line: str) -> Override | None:
    try:
        return parser.parse_overrides([line])[0]
    except (HydraException, ValueError, RecursionError):  # numbers of many digits, brackets within brackets
        return None


def _instead(parser: OverridesParser, line: str) -> str:
    """What to write in place of a line that is no override; what is proposed was read by Hydra's parser first."""
    key, equals, value = line.partition("=")
    known = _read(parser, f"{key}=VALUE")
    if known is None or not known.key_or_group:
        return f"a key has letters, digits, _ and dots, and is followed by '='; see {_GRAMMAR}"
    if not equals:
        return f"write {key}=VALUE"
    unquoted = _QUOTED_KEY.sub(r"\2\3", value)
    quoted = _WORD.sub(lambda word: word[0] if _PLAIN.fullmatch(word[0]) else f'"{word[0]}"', unquoted)
    whole = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    balanced = not any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()")) and '"' not in value
    for proposed in (value.lstrip("="), value.rstrip(","), unquoted, quoted, whole if balanced else ""):
        read = _read(parser, f"{key}={proposed}") if proposed else None
        kind = {"[": list, "{": dict}.get(proposed[:1], object)
        if (
            proposed != value
            and read is not None
            and (read.is_sweep_override() or isinstance(read.value(), kind))
        ):
            line = f"{key}={proposed}"
            return f"write {line if line == shlex.quote(line) else _for_shell(line)}"
    return f"brackets or quotes may not match; see {_GRAMMAR}, or write the value in a file of --config-dir"


def _for_shell(line: str) -> str:
    return f"'{line}'" if "'" not in line else shlex.quote(line)


def sweep_faults(parsed: Sequence[Override]) -> list[Fault]:
    """A fault for each override that stands for several values, which one run cannot take."""
    return [
        Fault(p.key_or_group, f"got {typed_value(p)}, a sweep; write -m to run one job for each")
        for p in parsed
        if p.is_sweep_override()
    ]


def size_faults(parsed: Sequence[Override]) -> list[Fault]:
    """Faults of overrides that stand for no value at all, or that make a sweep of too many jobs together."""
    counts = {p.get_key_element(): _num_values(p) for p in parsed if p.is_discrete_sweep()}
    faults = [
        Fault(p.get_key_element(), _no_value(p))
        for p in parsed
        if p.is_discrete_sweep() and _num_values(p) == 0
    ]
    total = math.prod(counts.values())
    if total > MOST_JOBS:
        many = ", ".join(f"{key}: {count:,} values" for key, count in counts.items() if count > 1)
        largest = max(counts, key=lambda key: counts[key])
        faults.append(Fault(largest, f"got {total:,} jobs ({many}), expected <= {MOST_JOBS:,} in one sweep"))
    return faults


def _no_value(p: Override) -> str:
    is_glob = typed_value(p).startswith("glob")
    hint = "glob chooses among the files of a group, as strategy=glob(distill*) does; " if is_glob else ""
    return f"got {typed_value(p)}, which stands for no value; {hint}write {p.key_or_group}=A,B"


def _num_values(p: Override) -> int:
    """How many values a sweep has, without making them."""
    if not p.is_range_sweep():
        return sum(1 for _ in p.sweep_iterator())
    sweep: Any = p.value()
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    if not (start.is_finite() and stop.is_finite() and step.is_finite() and step):
        return 0
    return max(0, math.ceil((stop - start) / step))


def jobs(parsed: Sequence[Override], loader: Any) -> Iterator[tuple[list[Override], str]]:
    """The overrides of each job, and what tells the job from the others (empty where there is but one)."""
    parser, choices, varying = OverridesParser.create(loader), [], []
    for p in parsed:
        if p.is_interval_sweep():  # only the sweeper knows its values; each job checks its own
            continue
        if p.is_sweep_override():
            values = [f"{p.get_key_element()}={value}" for value in p.sweep_string_iterator()]
            choices.append(parser.parse_overrides(values))
            varying.append(len(choices) - 1)
        else:
            choices.append([p])
    for combination in itertools.product(*choices):
        yield list(combination), ",".join(combination[i].input_line or "" for i in varying)


def typed_value(override: Override) -> str:
    """What stands after the '=', as it was typed."""
    return (override.input_line or "").partition("=")[2]
