"""Overrides as typed: read, multiplied out into the jobs of a sweep, and told why they do not fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException

from compresskd.config.faults import Fault, said
from compresskd.config.origin import NOTHING, leaves, origin, value_at
from compresskd.config.schema import GROUPS
from compresskd.options import close_match, nearest
from compresskd.run.renamed import VALUES, instead_of

MOST_JOBS = 20_000  # of one sweep
MOST_CHECKED = 1000  # of them before the first runs, see `checked_first`
_SPREAD = 50  # evenly over a sweep of more jobs
_LONGEST_SHOWN = 200  # characters of a line that cannot be read
_NOT_READ = (
    "is no override; write KEY=VALUE, and a value with other signs than letters, digits and ._-/ in quotes "
    "of its own, as in 'KEY=\"VALUE\"' (https://hydra.cc/docs/1.3/advanced/override_grammar/basic)"
)
_OF_FILES = {"experiment", "model", "hydra.searchpath", *GROUPS} - {"teacher_fit"}


def parse(lines: Sequence[str]) -> tuple[list[Override], list[Fault]]:
    """The overrides that can be read, and a fault for each line that cannot."""
    parsed, faults = [], []
    for line in lines:
        try:
            (override,) = _parser().parse_overrides([line])
        except (
            HydraException,
            ValueError,
            RecursionError,
        ):  # numbers of many digits, brackets within brackets
            override = None
        if override is not None and override.key_or_group:
            parsed.append(override)
        else:
            cut = line if len(line) <= _LONGEST_SHOWN else f"{line[:40]}... ({len(line)} characters)"
            faults.append(Fault(cut, _NOT_READ))
    return parsed, faults


def is_choice(p: Override) -> bool:
    """Whether an override chooses files, or where they are searched, and so takes a composition of its own."""
    named = "/" in p.key_or_group or p.package is not None or p.key_or_group in _OF_FILES
    return named and not isinstance(p.value(), dict)


def swept(parsed: Sequence[Override]) -> list[Fault]:
    """A fault for each override that stands for several values, which one run cannot take."""
    text = "got {}, a sweep; write -m to run one job for each"
    return [Fault(p.key_or_group, text.format(typed_value(p))) for p in parsed if p.is_sweep_override()]


def intervals(parsed: Sequence[Override]) -> list[Fault]:
    """A fault for each override that stands for all numbers of an interval, of which a list of jobs has none."""
    text = "got {}, expected values, such as {}=A,B; compresskd search takes ranges"
    return [
        Fault(p.key_or_group, text.format(typed_value(p), p.key_or_group))
        for p in parsed
        if p.is_interval_sweep()
    ]


def combinations(parsed: Sequence[Override]) -> tuple[list[tuple[list[Override], str]], list[Fault]]:
    """The overrides of each job of a sweep with what tells it from the others; or why there can be none."""
    known = [p for p in parsed if not p.is_interval_sweep()]  # only the sweeper knows its values
    choices = [_choices(p) for p in known]
    counts = {
        p.get_key_element(): len(c) for p, c in zip(known, choices, strict=True) if p.is_sweep_override()
    }
    none = "got {}, which stands for no value; write {}=A,B (glob chooses among the files of a group)"
    faults = [
        Fault(p.get_key_element(), none.format(typed_value(p), p.key_or_group))
        for p, c in zip(known, choices, strict=True)
        if not c
    ]
    total = math.prod(counts.values())
    if total > MOST_JOBS:
        many = ", ".join(f"{key}: {count:,} values" for key, count in counts.items() if count > 1)
        text = f"got {total:,} jobs or more ({many}), expected <= {MOST_JOBS:,} in one sweep"
        faults.append(Fault(max(counts, key=lambda key: counts[key]), text))
    if faults:
        return [], faults
    varying = [i for i, p in enumerate(known) if p.is_sweep_override()]
    jobs = itertools.product(*choices)
    return [(list(job), ",".join(job[i].input_line or "" for i in varying)) for job in jobs], []


def checked_first(jobs: Sequence[tuple[Sequence[Override], str]]) -> list[int]:
    """The positions of the jobs of a sweep that are checked before the first one runs: all, unless there are too many.

    Of more than `MOST_CHECKED` they are the first, the last and some between, and one with each value that is no whole
    number, as long as there are not too many of these.
    """
    if len(jobs) <= MOST_CHECKED:
        return list(range(len(jobs)))
    chosen = {len(jobs) - 1, *range(0, len(jobs), len(jobs) // _SPREAD)}
    seen: set[str] = set()
    for position, (job, _) in enumerate(jobs):
        new = {p.input_line or "" for p in job if not isinstance(p.value(), int)} - seen
        if new and len(chosen) < MOST_CHECKED:
            seen |= new
            chosen.add(position)
    return sorted(chosen)


def _choices(p: Override) -> list[Override]:
    """The overrides of one value that an override stands for; where there are too many, the first of them."""
    if not p.is_sweep_override():
        return [p]
    try:
        values = list(itertools.islice(p.sweep_string_iterator(), MOST_JOBS + 1))
    except ValueError:  # a range without a step
        values = []
    return _parser().parse_overrides([f"{p.get_key_element()}={value}" for value in values])


def _parser() -> OverridesParser:
    return OverridesParser.create(GlobalHydra.instance().config_loader())  # which glob asks for options


def typed_value(p: Override) -> str:
    """What stands after the '=', as it was typed."""
    return (p.input_line or "").partition("=")[2]


def fault_of_choice(p: Override, error: Exception) -> Fault:
    """What is wrong with a choice among files that does not compose."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or GlobalHydra.instance().config_loader().get_group_options(group)
        if options:  # of one name in a list Hydra does not tell them
            return Fault(p.get_key_element(), f"got {typed_value(p)}{nearest(name, options)}")
    if isinstance(error, TypeError):  # of Hydra, which looks into each of a list as into a text
        return Fault(p.get_key_element(), f"got {typed_value(p)}, expected a name, or a list of names")
    return Fault(p.get_key_element(), f"got {typed_value(p) or 'nothing'}; {said(error)}")


def fault_of_value(p: Override, error: Exception, written: Mapping[str, Any]) -> Fault:
    """What is wrong with an override that could not be carried out on a composition, and what to write instead."""
    key, value = p.key_or_group, typed_value(p)
    now, elsewhere = instead_of(key), origin(written, key, literal=True)
    if now is not None:
        return Fault(key, f"is called {now} now; write {now}={VALUES.get(now, {}).get(value, value)}")
    if elsewhere != key:
        return Fault(key, f"takes its value from another place; write {elsewhere}={value}")
    if p.is_add() or p.is_force_add() or value_at(written, key) is not NOTHING:
        return Fault(p.get_key_element(), f"got {value or 'nothing'}; {said(error.__cause__ or error)}")
    above = [leaf.partition("[")[0].split(".") for leaf, _ in leaves(written)]
    known = {".".join(parts[:n]) for parts in above for n in range(1, len(parts) + 1)}
    own = [k for k in (*known, "experiment") if not k.startswith("hydra.") or key.startswith("hydra.")]
    alike = [k for k in own if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = close_match(key.replace("/", "."), own) or min(alike, key=lambda k: k.count("."), default=None)
    more = "" if p.is_delete() or "." not in key else f"; a new option is added by +{key}={value}"
    return Fault(p.get_key_element(), f"unknown option{f'; did you mean {near}?' if near else more}")
