"""From a checked configuration to an `Experiment`, or to the list of everything that is wrong with it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import OmegaConf

from compresskd.config.allowed import outside_targets
from compresskd.config.compose import Job
from compresskd.config.faults import ConfigError, Fault, of_jobs
from compresskd.config.origin import as_written, interpolation_faults, origin
from compresskd.config.outputs import output_faults
from compresskd.config.parts import Parts, for_task, model_of, with_shape
from compresskd.config.recorded import check_recorded
from compresskd.config.resolved import resolved
from compresskd.config.schema import DEFAULTS, MODEL_ROLES
from compresskd.config.teacher_run import teacher_of
from compresskd.data.base import Data
from compresskd.engine.experiment import Experiment

Plain = dict[str, Any]


def build_jobs(
    jobs: Sequence[Job], loaded: dict[str, Data] | None = None, tried: set[str] | None = None
) -> list[Experiment]:
    """The experiment of every job; data that several share is loaded once, trainings that several share tried once.

    Args:
        loaded, tried: what jobs built before had of these; what is new is added.

    Raises:
        ConfigError: with the faults of all jobs; nothing has been trained or written.
    """
    experiments: list[Experiment] = []
    faults: list[list[Fault]] = []
    loaded = {} if loaded is None else loaded
    tried = set() if tried is None else tried
    cause: BaseException | None = None
    for job in jobs:
        try:
            experiments.append(_build_job(job, loaded, tried))
            faults.append([])
        except ConfigError as error:
            faults.append(error.faults)
            cause = error.__cause__
    if any(faults):
        raise ConfigError(of_jobs(faults, [job.name for job in jobs])) from cause
    return experiments


def _build_job(job: Job, loaded: dict[str, Data], tried: set[str]) -> Experiment:
    broken = interpolation_faults(job.config)
    if broken:
        raise ConfigError([*job.faults, *broken])
    try:
        config = resolved(job.config)
    except ConfigError as error:
        raise ConfigError([*job.faults, *error.faults]) from error
    faults = [*job.faults, *output_faults(job.overrides, config["outputs_dir"])]
    key = json.dumps(config["data"], sort_keys=True)
    written = as_written(job.config)
    data, origin_of = loaded.get(key), functools.partial(origin, written)
    experiment = build(config, job.overrides, data=data, origin_of=origin_of, faults=faults, tried=tried)
    loaded[key] = experiment.data
    return experiment


def build_recorded(config: Plain, overrides: Sequence[str] = (), *, trust: Sequence[str] = ()) -> Experiment:
    """The experiment of a record.

    Args:
        config: that of the record.
        overrides: what was typed when the run was begun.
        trust: packages besides compresskd whose code may run.

    Raises:
        ConfigError: with every fault, such as data that is no longer there, or code that may not run.
    """
    check_recorded(config, trust)
    return build(resolved(OmegaConf.create(completed(config))), overrides, trust=trust)


def completed(config: Plain) -> Plain:
    """A recorded configuration; keys that an earlier version did not write get their defaults."""
    return DEFAULTS | config


def build(
    config: Plain,
    overrides: Sequence[str] = (),
    *,
    data: Data | None = None,
    origin_of: Callable[..., str] = lambda key, **_: key,
    faults: Sequence[Fault] = (),
    tried: set[str] | None = None,
    trust: Sequence[str] | None = None,
) -> Experiment:
    """Build the experiment that a resolved configuration describes.

    Args:
        config: what `resolve` returned.
        overrides: what was typed, for the record.
        data: already loaded; None loads what `config['data']` says.
        origin_of: (key, literal=) -> the key that a user would change; see `compresskd.config.origin`.
        faults: already known, to be raised with those found here.
        tried: see `Parts`.
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.

    Raises:
        ConfigError: with every fault; nothing has been trained or written.
    """
    parts = Parts(config, faults, tried, trust)
    if not parts.check():
        parts.stop_at_faults(origin_of)
    recipe = parts.recipe(config)
    parts.recipe(config["teacher_fit"], prefix="teacher_fit.")
    strategy = parts.strategy()
    device = parts.device()
    task = parts.task()
    if task is not None and strategy is not None:
        parts.check_objectives(task, strategy)
    data = data or parts.data(task)
    parts.models(data, strategy, recipe, device)
    teacher = None
    if data is not None:
        shape = data.num_classes, data.input_shape
        config = config | {"data": for_task(config["data"], task)}
        config |= {role: with_shape(config[role], *shape) for role in ("data", *MODEL_ROLES)}
        if strategy is not None and strategy.needs_teacher:
            own = functools.partial(build, overrides=overrides, data=data, tried=tried, trust=trust)
            teacher = parts.teacher(functools.partial(teacher_of, config, data, own))
    parts.stop_at_faults(origin_of)
    assert recipe is not None and strategy is not None and device is not None and data is not None  # noqa: PT018
    student = functools.partial(model_of, config["student"], config["seed"])
    named = [path.partition(".")[0] for _, path in outside_targets(config)] if trust is None else trust
    return Experiment(
        data,
        student,
        strategy,
        recipe,
        config["seed"],
        device,
        teacher,
        plan=config["tt"]["plan"],
        measure_latency=config["measure"]["latency"],
        config=config,
        overrides=tuple(overrides),
        trust=tuple(named),
    )
