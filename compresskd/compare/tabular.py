"""The comparison for programs: CSV with one line an entry, JSON with everything."""

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from compresskd.compare import numbers
from compresskd.compare.comparison import Comparison
from compresskd.compare.grouping import Group
from compresskd.compare.output import GENERATOR, MARKS
from compresskd.compare.pairing import PairedTests
from compresskd.compare.terminal import printable

FORMAT = 1
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def csv_text(comparison: Comparison) -> str:
    """One line an entry, raw numbers (accuracies as fractions); its group's statistics are repeated in each."""
    by = [key for key in comparison.by if key not in ("stage", "strategy", "seed")]
    header = ["compare_group", "compare_run", "status", "strategy", "stage", "seed", *by, *comparison.names]
    header += ["counted", "group_n", "group_mean", "group_std", "group_low", "group_high"]
    header += [*(f"pareto_{cost}" for cost in numbers.COSTS), "flags"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(_harmless, header))
    assert stream.getvalue().startswith(MARKS["csv"])
    for number, group in enumerate(comparison.groups, 1):
        by_index = [text for key, text in zip(comparison.by, group.values, strict=True) if key in by]
        statistics = _statistics(comparison, group)
        for index in group.members:
            entry = comparison.study.entries[index]
            counted = index in group.counted
            row = [
                number,
                entry.run,
                entry.status,
                entry.strategy,
                entry.stage,
                "" if entry.seed is None else entry.seed,
                *by_index,
                *(entry.numbers.get(name, "") for name in comparison.names),
                int(counted),
                *statistics,
                *(int(counted and cost in group.fronts) for cost in numbers.COSTS),
                "; ".join(flag.code for flag in comparison.flags[index]),
            ]
            writer.writerow([_harmless(cell) if isinstance(cell, str) else cell for cell in row])
    return stream.getvalue()


def _statistics(comparison: Comparison, group: Group) -> list[Any]:
    summary = group.summaries.get(comparison.metric)
    found = (summary.n, summary.mean, summary.std, summary.low, summary.high) if summary else (0, *[None] * 4)
    return ["" if value is None else value for value in found]


def _harmless(text: str) -> str:
    """A cell that no spreadsheet runs and that cannot begin a row or a cell of its own.

    What begins like a formula (in the full-width signs too) is made text by an apostrophe before it; a number keeps
    its sign. Control characters, a carriage return among them, are written out.
    """
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def json_text(comparison: Comparison, tests: PairedTests) -> str:
    """Groups, entries, tests, configuration differences and problems as one JSON document."""
    reference = tests.reference
    by_identity = {id(group): number for number, group in enumerate(comparison.groups, 1)}
    document = {
        "generator": GENERATOR,
        "format": FORMAT,
        "metric": comparison.metric,
        "latency": comparison.latency,
        "by": comparison.by,
        "num_records": comparison.study.num_records,
        "notes": comparison.notes,
        "groups": [_group(comparison, group, n) for n, group in enumerate(comparison.groups, 1)],
        "runs": [_run(comparison, index) for group in comparison.groups for index in group.members],
        "tests": {
            "reference": by_identity.get(id(reference)) if reference else None,
            "why": tests.why,
            "untested": tests.untested,
            "results": [_test(test, by_identity[id(test.group)]) for test in tests.tests],
        },
        "differing_keys": {
            "grouping": comparison.keys.grouping,
            "following": comparison.keys.following,
            "ignored": comparison.keys.ignored,
        },
        "problems": [
            {"path": str(problem.path), "reason": problem.reason} for problem in comparison.study.problems
        ],
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _group(comparison: Comparison, group: Group, number: int) -> dict[str, Any]:
    return {
        "group": number,
        "label": comparison.label(group),
        "keys": dict(zip(comparison.by, group.values, strict=True)),
        "num_runs": len(group.members),
        "num_counted": len(group.counted),
        "pareto": [cost for cost in numbers.COSTS if cost in group.fronts],
        "summaries": {name: asdict(summary) for name, summary in sorted(group.summaries.items())},
        "runs": [entry.run for entry in comparison.entries(group.members)],
    }


def _run(comparison: Comparison, index: int) -> dict[str, Any]:
    entry, keys = comparison.study.entries[index], comparison.keys
    shown = [key for key in dict.fromkeys((*comparison.by, *keys.grouping)) if key in keys.differing]
    differing = {key: keys.differing[key][index] for key in shown}
    return {
        "run": entry.run,
        "directory": str(entry.directory),
        "status": entry.status,
        "strategy": entry.strategy,
        "stage": entry.stage,
        "seed": entry.seed,
        "created": entry.created,
        "numbers": dict(entry.numbers),
        "config": differing,
        "flags": [{"code": flag.code, "text": flag.text} for flag in comparison.flags[index]],
    }


def _test(test: Any, number: int) -> dict[str, Any]:
    return {
        "group": number,
        "pairs": test.pairs,
        "impossible": test.impossible,
        "bootstrap": asdict(test.bootstrap) if test.bootstrap else None,
        "p_holm": test.p_holm,
        "over_seeds": asdict(test.over_seeds) if test.over_seeds else None,
        "mcnemar": [asdict(single) for single in test.mcnemar],
        "notes": test.notes,
    }
