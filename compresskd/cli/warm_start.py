"""Finished runs of before as points of a search: those whose configuration is what a trial's would be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskd.cli.search_plan import Plan
from compresskd.compare.discovery import find_records
from compresskd.config.faults import ConfigError
from compresskd.config.origin import NOTHING, value_at
from compresskd.config.recorded import differences
from compresskd.options import shown
from compresskd.run import FINISHED, Record, RunDirectoryError, read_record
from compresskd.search.quantities import figures, teacher_figures
from compresskd.search.space import Choice, Dimension, lines
from compresskd.search.trials import GIVEN, Trial

_IRRELEVANT = ("outputs_dir", "measure.")
_MOST_TOLD = 5


def given_trials(plan: Plan, roots: Sequence[Path], say: Callable[[str], None]) -> list[Trial]:
    """The runs below `roots` that are points of the plan's space; of the others is said why they are none."""
    paths, problems = find_records(roots)
    left = Counter(problem.reason for problem in problems)
    found: list[Trial] = []
    for path in paths:
        try:
            trial = _given(plan, read_record(path.parent), path.parent, -1 - len(found))
        except (RunDirectoryError, ConfigError, _Unfit) as error:
            left[str(error).splitlines()[-1].strip()] += 1
            continue
        if any(each.identity == trial.identity for each in found):
            left["the same run as another"] += 1
        else:
            found.append(trial)
    say(f"--warm-start: {len(found)} of {len(paths)} runs give points of the space")
    for reason, count in left.most_common(_MOST_TOLD):
        say(f"--warm-start: left out {count}: {reason}")
    if len(left) > _MOST_TOLD:
        say(
            f"--warm-start: left out {sum(left.values()) - sum(n for _, n in left.most_common(_MOST_TOLD))} for others"
        )
    return found


class _Unfit(ValueError):
    """A run that is no point of the space, and why."""


def _given(plan: Plan, record: Record, directory: Path, number: int) -> Trial:
    if record.status != FINISHED:
        raise _Unfit(f"the run is {record.status}")
    said = dict(line.lstrip("+~").split("=", 1) for line in record.overrides if "=" in line)
    point = {each.key: _value(each, record.config, said) for each in plan.question.space}
    experiment = plan.composer.experiment([*plan.shared, *lines(point)])
    changed = [
        line
        for line in differences(record.config, dict(experiment.config))
        if not line.startswith(_IRRELEVANT)
    ]
    if changed:
        raise _Unfit(f"{changed[0]}" + (f" (and {len(changed) - 1} more)" if changed[1:] else ""))
    if record.data.get("fingerprint") not in (
        experiment.data.fingerprint,
        experiment.data.batches_fingerprint,
    ):
        raise _Unfit("other data")
    trial = Trial(number, point, str(directory.absolute()), plan.prepare(point).identity, GIVEN)
    trial.figures, trial.teacher, trial.seconds = (
        figures(record),
        teacher_figures(record),
        record.wall_seconds,
    )
    asked = [each.quantity.name for each in (*plan.question.objectives, *plan.question.bounds)]
    missing = [name for name in asked if name not in trial.figures]
    if missing:
        raise _Unfit(f"its record holds no {', '.join(missing)}")
    return trial


def _value(dimension: Dimension, config: Mapping[str, Any], said: Mapping[str, str]) -> str:
    """The value of a key in a run: as it was typed, or as its configuration has it."""
    key = dimension.key.lstrip("+~")
    value = said.get(key)
    if value is None:
        recorded = value_at(config, key)
        if recorded is NOTHING or isinstance(recorded, Mapping):
            raise _Unfit(f"it does not say which {key} it took")
        value = (
            "null" if recorded is None else shown(recorded) if isinstance(recorded, bool) else str(recorded)
        )
    read = dimension.read(value)
    if read is None:
        raise _Unfit(f"{key}={value} is not in the space")
    return dimension.text(read) if isinstance(dimension, Choice) else value
