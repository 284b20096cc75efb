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
from compresskd.config.parts import Parts, for_task, model_of, told_by, with_shape, with_told
from compresskd.config.recorded import check_recorded
from compresskd.config.resolved import resolved
from compresskd.config.schema import DEFAULTS, MODEL_ROLES
from compresskd.config.teacher_run import teacher_of
from compresskd.data.base import Data
from compresskd.engine.experiment import Experiment
from compresskd.models.build import build as build_model
from compresskd.models.huggingface import is_trained_for

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
    parts.recipe(_with_epochs(config, config["epochs"])["teacher_fit"], prefix="teacher_fit.")
    strategy = parts.strategy()
    device = parts.device()
    task = parts.task()
    if task is not None and strategy is not None:
        parts.check_objectives(task, strategy)
    data = data or parts.data(task)
    parts.models(data, strategy, recipe, device)
    teacher, kept = None, parts.from_teacher()
    if data is not None:
        told = told_by(data)
        config = config | {"data": with_shape(for_task(config["data"], task), told)}
        config |= {role: with_told(config[role], told) for role in MODEL_ROLES}
        if strategy is not None and (strategy.needs_teacher or kept is not None):
            comes_trained = not parts.faults and is_trained_for(config["teacher"])
            config = _with_epochs(config, 0 if comes_trained else config["epochs"])
            own = functools.partial(build, overrides=overrides, data=data, tried=tried, trust=trust)
            teacher = parts.teacher(functools.partial(teacher_of, config, data, own))
    parts.stop_at_faults(origin_of)
    assert recipe is not None and strategy is not None and device is not None and data is not None  # noqa: PT018
    student = functools.partial(model_of, config["student"], config["seed"])
    if kept is not None and parts.teacher_made is not None:
        made = kept.architecture(parts.teacher_made)
        student = functools.partial(build_model, made["target"], made["kwargs"], seed=config["seed"])
    named = [path.partition(".")[0] for _, path in outside_targets(config)] if trust is None else trust
    return Experiment(
        data,
        student,
        strategy,
        recipe,
        config["seed"],
        device,
        teacher,
        inherit=kept.inherit if kept is not None and kept.inherits else None,
        plan=config["tt"]["plan"],
        measure_latency=config["measure"]["latency"],
        config=config,
        overrides=tuple(overrides),
        trust=tuple(named),
    )


def _with_epochs(config: Plain, epochs: int) -> Plain:
    """The configuration with a number of epochs for the teacher's own training, where it says none."""
    fit = config["teacher_fit"]
    own = epochs if fit.get("epochs", epochs) is None else fit.get("epochs")
    return {**config, "teacher_fit": {**fit, "epochs": own}}
