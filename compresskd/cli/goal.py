"""`compresskd goal='accuracy>=-1.0' minimize=bytes`: the smallest model that is good enough, or the best that fits.

The words are taken as the shell delivers them, before Hydra's grammar sees them. What is searched is what decides the
size: strategy, the share of the parameters that is kept, and bits; whatever the user says of these is kept.
"""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskd.cli.endings import complain
from compresskd.cli.search_plan import Plan, faults_of_options
from compresskd.cli.trial import Composer
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import as_written, value_at
from compresskd.options import OptionError
from compresskd.search.narrowing import Arm, Narrowing
from compresskd.search.quantities import SIZES, bound, known
from compresskd.search.space import Choice, Dimension, Point, Range, lines, parse
from compresskd.search.trials import Trial

WORDS = ("goal=", "minimize=", "maximize=")
TRIALS = 24
SHARE_OF_MINUTES = 0.7  # for trials; the rest is for the answer
_STRATEGIES = ("compress_then_distill", "distill_then_compress")
_BITS = (("4", "3", "2", "8"), ("3", "2", "4"))  # where a metric is made best, and where a size is made least
_FORMS_EACH = 2  # of a strategy
_SIZE_KEYS = {
    f"compress.{key}" for key in ("ranks", "tolerance", "energy", "budget", "max_drop", "modes")
} | {
    "rank",
    "quant.budget",
}
_SHORT = 5  # a short training has this part of the epochs


def run(arguments: Namespace) -> int:
    """Look for what meets a goal."""
    from compresskd.cli.search import conduct

    return conduct(asked_of(arguments))


def asked_of(arguments: Namespace) -> dict[str, Any]:
    """What was typed, as search.json keeps it.

    Raises:
        ConfigError: the goal cannot be read, or is none that a search can meet.
    """
    words = list(arguments.words)
    said = {w: [word.removeprefix(w) for word in words if word.startswith(w)] for w in WORDS}
    where = [part for text in said["goal="] for part in text.split(",")]
    objectives = [[w.rstrip("="), name] for w in WORDS[1:] for name in said[w]]
    if not said["goal="]:
        raise ConfigError([Fault("goal", "got nothing, expected goal='accuracy>=-1.0' or the like")])
    if len(objectives) > 1:
        text = f"got {' and '.join(name for _, name in objectives)}, expected one figure; bounds of others go to goal="
        raise ConfigError([Fault(objectives[-1][0], text)])
    trials, minutes = arguments.trials, arguments.minutes
    return {
        "kind": "goal",
        "words": [word for word in words if not word.startswith(WORDS)],
        "objectives": objectives,
        "where": where,
        "epochs": None,
        "seed": 0,
        "trials": TRIALS if trials is None and minutes is None else trials,
        "minutes": None if minutes is None else minutes * SHARE_OF_MINUTES,
        "workers": arguments.workers,
        "then": 1,
        "warm_start": [],
        "config_dirs": [str(path.absolute()) for path in arguments.config_dir],
        "cwd": os.getcwd(),
    }


@dataclass(frozen=True)
class Narrowed:
    """What is searched for a goal.

    Attributes:
        asked: as `asked_of` has it, with the objective.
        arms: see `narrowing.Arm`.
        epochs: of short and of full trainings; none where there is one kind.
    """

    asked: Mapping[str, Any]
    arms: tuple[Arm, ...]
    epochs: tuple[str, ...]

    @property
    def looked_for(self) -> tuple[list[Dimension], Point]:
        """The keys that vary, with all values, and a point that can be built."""
        values: dict[str, dict[str, None]] = {}
        for arm in self.arms:
            for key, value in arm.point.items():
                values.setdefault(key, {})[value] = None
        levers: dict[str, list[Arm]] = {}
        for arm in self.arms:
            if arm.lever:
                levers.setdefault(arm.lever, []).append(arm)
        found: list[Dimension] = [Choice(key, tuple(each)) for key, each in values.items()]
        found += [
            Range(key, min(a.low for a in arms), max(a.high for a in arms), arms[0].whole, log=True)
            for key, arms in levers.items()
        ]
        found += [Choice("epochs", self.epochs)] if self.epochs else []
        arm = self.arms[0]
        lever = {arm.lever: arm.written(arm.high)} if arm.lever else {}
        return found, {**arm.point, **lever, **({"epochs": self.epochs[-1]} if self.epochs else {})}

    def proposer(self, plan: Plan, trials: Sequence[Trial]) -> Narrowing:
        """What says which point is tried next."""
        return Narrowing(plan.question, self.arms, self.epochs, trials)


def narrowed(asked: Mapping[str, Any], trust: Sequence[str] | None) -> Narrowed:
    """Find out what there is to choose from: what the user has settled is kept, what cannot be built is left out.

    Raises:
        ConfigError: nothing can be built, or the goal is none that a search can meet.
    """
    composer = Composer(tuple(map(Path, asked["config_dirs"])), None if trust is None else tuple(trust))
    rest = list(asked["words"])
    with faults_of_options():
        for each in parse(rest)[0]:
            raise OptionError(
                each.key, "a range", "one value beside a goal; ranges are for compresskd search"
            )
    settled = _settled(composer, rest)
    strategies = [{}] if "strategy" in settled else [{"strategy": name} for name in _STRATEGIES]
    forms = [_Form()] if settled & _SIZE_KEYS else _FORMS
    built, example = _buildable(composer, rest, strategies, forms)
    with faults_of_options():
        objective = _objective(asked, example)
    full = int(example.config["epochs"])
    has_one_length = bool(settled & {"total_epochs", "train.max_steps"}) or full < _SHORT
    epochs = () if has_one_length else (str(full // _SHORT), str(full))
    bits = ("",) if settled & {"bits", "quant.budget"} else _BITS[objective[0] in SIZES]
    arms = [
        Arm({**point, **({"bits": each} if each else {})}, form.lever, low, form.high, float(each or 1), form.power,
            form.whole)
        for each in bits
        for point, form, low in built
    ]  # fmt: skip
    way, name = objective[1], objective[0]
    return Narrowed({**asked, "objectives": [[way, name]]}, tuple(arms), epochs)


@dataclass(frozen=True)
class _Form:
    """How the size is set: by a lever, and the keys that go with it; a form that says nothing leaves it as it is."""

    lever: str = ""
    fixed: Mapping[str, str] = field(default_factory=dict)
    low: float = 1.0
    high: float = 1.0
    power: float = 1.0
    whole: bool = False

    def words(self, value: float) -> list[str]:
        """The overrides of a value of the lever."""
        text = str(round(value)) if self.whole else repr(value)
        return [*lines(self.fixed), *([f"{self.lever}={text}"] if self.lever else [])]


_RANK = {"low": 1, "high": 64, "power": 1.5, "whole": True}
# Trains of four cores train better than what the search over forms takes at very small sizes; a budget shares the
# parameters among layers by their errors, which larger networks need.
_FORMS = (
    _Form("rank", {"compress.num_cores": "4"}, **_RANK),
    _Form("compress.budget", {}, low=1e-3, high=0.5),
    _Form("rank", {}, **_RANK),
)


def _settled(composer: Composer, rest: Sequence[str]) -> set[str]:
    """The keys, of those that a goal is looked for by, whose value is not the shipped one, or was typed."""
    typed = {line.lstrip("+~").partition("=")[0] for line in rest}
    own, shipped = (composer.job(words).config for words in (rest, []))
    return {
        key
        for key in ("strategy", "bits", "total_epochs", "train.max_steps", *_SIZE_KEYS)
        if key in typed or _at(own, key) != _at(shipped, key)
    }


def _at(config: Any, key: str) -> Any:
    return value_at(as_written(config), "strategy.name" if key == "strategy" else key)


def _buildable(
    composer: Composer, rest: Sequence[str], strategies: Sequence[Point], forms: Sequence[_Form]
) -> tuple[list[tuple[Point, _Form, float]], Any]:
    """What can be built, of each strategy two forms at most: values of keys, the form, its lever's least value."""
    found: list[tuple[Point, _Form, float]] = []
    refused, example = [], None
    for strategy in strategies:
        taken = 0
        for form in forms[: None if len(forms) == 1 else 3]:
            words = [*rest, *lines(strategy)]

            def build(value: float, words: Sequence[str] = words, form: _Form = form) -> Any:
                return composer.experiment([*words, *form.words(value)])

            if taken == _FORMS_EACH:
                break
            try:
                example = build(form.high)
            except ConfigError as error:
                refused.append(error)
                continue
            taken += 1
            found.append(({**strategy, **form.fixed}, form, _least(build, form)))
        if not taken and len(strategies) > 1:
            complain(f"{' '.join(lines(strategy))} is left out: {str(refused[-1]).splitlines()[-1].strip()}")
    if example is None:
        raise refused[0]
    return found, example


def _least(build: Callable[[float], Any], form: _Form) -> float:
    """The smallest value of the lever that can be built, to within a tenth."""
    low, high = form.low, form.high
    try:
        build(low)
        return low
    except ConfigError:
        pass
    while high > low * 1.1 and not (form.whole and high - low <= 1):
        middle = float(f"{math.sqrt(low * high):.3g}")
        try:
            build(middle)
            high = middle
        except ConfigError:
            low = middle
    return high


def _objective(asked: Mapping[str, Any], example: Any) -> tuple[str, str]:
    """What is made best, and which way: as asked for, else the bytes, or where a size is the goal the metric.

    Raises:
        OptionError: goal and objective are both sizes, or both metrics.
    """
    quantities = known(example.data.task.describe())
    bounds = [bound(text, "goal", quantities) for text in asked["where"]]
    monitor, text = example.data.task.monitor, ", ".join(asked["where"])
    on_metric = any(each.quantity.metric is not None for each in bounds)
    way, name = (asked["objectives"] or [["minimize", "bytes"] if on_metric else ["", monitor.name]])[0]
    way = way or ("maximize" if monitor.higher_is_better else "minimize")
    is_size = name in SIZES
    if is_size and not on_metric:
        raise OptionError(
            "goal", text, f"a bound on a metric beside {way}={name}, such as {monitor.name}>=-1.0"
        )
    if not is_size and all(each.quantity.metric is not None for each in bounds):
        raise OptionError("goal", text, f"a bound on a size beside {way}={name}, such as bytes<=50000")
    return name, way
