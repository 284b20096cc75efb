"""Overrides as typed: read, and multiplied out into the jobs of a sweep."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from compresskd.config.faults import Fault


def parse(lines: Sequence[str]) -> tuple[list[Override], list[Fault]]:
    """The overrides that can be read, and a fault for each line that cannot."""
    parser, parsed, faults = OverridesParser.create(), [], []
    for line in lines:
        try:
            override = parser.parse_override(line)
        except HydraException:
            faults.append(Fault(line, f"is no override; {_instead(line)}"))
            continue
        if override.key_or_group:
            parsed.append(override)
        else:
            faults.append(Fault(line, "is no override: no key before the '='; write key=value"))
    return parsed, faults


def sweep_faults(parsed: Sequence[Override]) -> list[Fault]:
    """A fault for each override that stands for several values, which one run cannot take."""
    return [
        Fault(p.key_or_group, f"came {typed_value(p)}, a sweep; write -m to run one job for each")
        for p in parsed
        if p.is_sweep_override()
    ]


def jobs(parsed: Sequence[Override]) -> Iterator[tuple[list[Override], str]]:
    """The overrides of each job, and what tells the job from the others (empty where there is but one)."""
    parser, choices, varying = OverridesParser.create(), [], []
    for p in parsed:
        if p.is_interval_sweep():  # only the sweeper knows its values; each job checks its own
            continue
        if p.is_sweep_override():
            key = p.get_key_element()
            values = [f"{key}={value}" for value in p.sweep_string_iterator()]
            choices.append([parser.parse_override(line) for line in values])
            varying.append(len(choices) - 1)
        else:
            choices.append([p])
    for combination in itertools.product(*choices):
        yield list(combination), ",".join(combination[i].input_line or "" for i in varying)


def typed_value(override: Override) -> str:
    """What stands after the '=', as it was typed."""
    return (override.input_line or "").partition("=")[2]


def _instead(line: str) -> str:
    key, equals, value = line.partition("=")
    if not equals:
        return f"write {key}=VALUE"
    if value.startswith("="):
        return f"write {key}={value.lstrip('=')}, with one '='"
    if value.endswith(","):
        return f"a value is missing after the last comma; write {key}={value.rstrip(',')}"
    unmatched = [pair for pair in ("[]", "{}", "()") if value.count(pair[0]) != value.count(pair[1])]
    unmatched += [mark for mark in "'\"" if value.count(mark) % 2]
    if unmatched:
        return f"{' '.join(unmatched)} do not match in {value}"
    if re.search(r"\s|[=:,()\[\]{}]", value):
        return f"quote a value with special characters twice, once for the shell: '{key}=\"{value}\"'"
    return "write key=value"
