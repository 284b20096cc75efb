"""From checked configurations to an `Experiment` each, or to the list of everything that is wrong with them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.allowed import outside_targets
from compresskd.config.compose import Job
from compresskd.config.faults import ConfigError, Fault, of_jobs
from compresskd.config.origin import as_written, interpolation_faults
from compresskd.config.parts import Parts, comparing, model_of, trial_key
from compresskd.config.processes import num_processes, process_faults
from compresskd.config.shipped import conf_dir
from compresskd.data import unlabelled
from compresskd.data.base import Data
from compresskd.data.text.prune import KEY as PRUNE
from compresskd.distributed.launch import device_here
from compresskd.engine.experiment import Experiment
from compresskd.engine.strategy import State, Strategy
from compresskd.engine.teacher import Teacher
from compresskd.models.build import build as build_model
from compresskd.models.from_teacher import RANDOM
from compresskd.models.huggingface import is_trained_for, weights_folder
from compresskd.options import raise_all
from compresskd.run.later import OF_A_SCHEDULE, OF_A_TRAINING, without
from compresskd.targets.stored_names import with_stored_targets
from compresskd.training import Recipe
from compresskd.trust.sources import source_digests
from compresskd.tt import FIXED

Plain = dict[str, Any]
_PATHS = (
    ("", "outputs_dir"),
    ("data", "path"),
    ("data", "unlabelled_path"),
    ("teacher", "weights"),
    ("student", "weights"),
)
_MAYBE_PATHS = (("teacher", "id"), ("student", "id"), ("data", "tokenizer"))  # or names on the hub, or words
_PLACES_OF_A_TRACKER = (("directory", ""), ("uri", "sqlite:///"))
_RECIPE = ("epochs", "seed", "optimizer", "scheduler", "train")
# What determines a trained teacher, beside the data.
_DETERMINING = ("strategy", "precision", *_RECIPE)


def build_jobs(
    jobs: Sequence[Job], shared: dict[str, Any] | None = None, *, trust: Sequence[str] | None = None
) -> list[Experiment]:
    """The experiment of every job.

    Args:
        shared: what jobs built before had in common with these: data that is loaded once, trainings that are tried
            once; what is new is added.
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.

    Raises:
        ConfigError: with the faults of all jobs; nothing has been trained or written.
    """
    experiments, faults = [], []
    shared = {} if shared is None else shared
    cause: BaseException | None = None
    for job in jobs:
        try:
            written, config = as_written(job.config), resolved(job.config)
            parts = Parts(config, written=written, known=job.faults, shared=shared, trust=trust)
            experiments.append(build(parts, job.overrides, trust=trust))
            faults.append([])
        except ConfigError as error:
            faults.append([*job.faults, *error.faults])
            cause = error.__cause__
    if any(faults):
        raise ConfigError(of_jobs(faults, [job.name for job in jobs])) from cause
    return experiments


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as nested plain values, paths made absolute so that it means the same anywhere.

    `epochs` becomes an equal share of `total_epochs`, where that is given: all training stages come to exactly that
    many together. A stage that sets its own number keeps it, and the others share what is left; the teacher keeps the
    epochs that it had.

    Raises:
        ConfigError: for every interpolation that leads nowhere; for a total that cannot be shared equally.
    """
    config = _values(cfg)
    total = config.get("total_epochs")
    if not isinstance(total, int) or isinstance(total, bool):
        return config
    one, two = (Parts(_values(cfg, epochs)).strategy() for epochs in (1, 2))
    if one is None or two is None or one.num_epochs == two.num_epochs:  # faults are told with the others
        return config
    count = two.num_epochs - one.num_epochs
    fixed = one.num_epochs - count
    epochs, left = divmod(total - fixed, count)
    if left or epochs < 1:
        least = max(total - left, fixed + count)
        shared = f"an equal share for each of the {count} training stages of {one.name}"
        sets = f", beside the {fixed} epochs that are set" if fixed else ""
        text = f"got {total}, expected {least} or {least + count}: {shared}{sets}"
        raise ConfigError([Fault("total_epochs", text)])
    fit, teacher = config["teacher_fit"], config["teacher"]
    if isinstance(fit, dict) and not (isinstance(teacher, dict) and teacher.get("id")):
        fit = _with_epochs(fit, config["epochs"])  # weights beside an id may need none
    return {**_values(cfg, epochs), "teacher_fit": fit}


def _values(cfg: DictConfig, epochs: int | None = None) -> dict[str, Any]:
    try:
        cfg = cfg if epochs is None else OmegaConf.merge(cfg, {"epochs": epochs})  # pyright: ignore
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(interpolation_faults(cfg) or [Fault("", str(error))]) from error
    for group, key in (*_PATHS, *_MAYBE_PATHS):
        holder = values.get(group) if group else values
        place = holder.get(key) if isinstance(holder, dict) else None
        path = Path(place).expanduser() if isinstance(place, str) and place else None
        if path is not None and ((group, key) in _PATHS or path.exists()):
            holder[key] = str(path.absolute())
    for node in (values.get("tracker") or {}).values():
        _make_places_absolute(node)
    return values


def _make_places_absolute(tracker: Any) -> None:
    for key, scheme in _PLACES_OF_A_TRACKER:
        place = tracker.get(key) if isinstance(tracker, dict) else None
        if isinstance(place, str) and place.startswith(scheme) and place != scheme:
            tracker[key] = f"{scheme}{Path(place.removeprefix(scheme)).expanduser().absolute()}"


def _with_epochs(fit: Plain, epochs: Any) -> Plain:
    """A teacher's own training with a number of epochs, where it says none."""
    return {**fit, "epochs": epochs} if fit.get("epochs", 0) is None else fit


def build(parts: Parts, overrides: Sequence[str] = (), *, trust: Sequence[str] | None = None) -> Experiment:
    """Build the experiment that a resolved configuration describes.

    Args:
        parts: of that configuration.
        overrides: what was typed, for the record.
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.

    Raises:
        ConfigError: with every fault; nothing has been trained or written.
    """
    parts.check()
    task, strategy, device = parts.task(), parts.strategy(), parts.device()
    parts.attempt(str, lambda: raise_all(process_faults(parts.config, device)))
    data = parts.data(task)
    if task is not None and strategy is not None:
        parts.check_objectives(task, strategy)
        parts.check_unlabelled(strategy)
        parts.check_packed(strategy, data.num_classes if data else None)
        parts.check_sharding(strategy)
        if data is not None and not comparing(strategy):  # of which the tokenizer alone may have been made
            data = replace(data, unlabelled=None)
    recipe = parts.recipe(parts.config)
    as_many = parts.config["epochs"] if recipe else 0  # what is wrong with them has been said once
    fit = parts.recipe(_with_epochs(parts.config["teacher_fit"], as_many), "teacher_fit.")
    recipe, fit = (_that_fits(each, data) for each in (recipe, fit))
    teacher, config = parts.models(strategy, data, recipe, device), dict(parts.config)
    config["processes"] = number = num_processes(config)
    device = None if device is None else device_here(device)
    comes_trained = teacher is not None and is_trained_for(config["teacher"])
    config["teacher_fit"] = _with_epochs(config["teacher_fit"], 0 if comes_trained else config["epochs"])
    is_ready = config["teacher"].get("weights") or (
        comes_trained and config["teacher_fit"].get("epochs") == 0
    )
    own = _own_config(config) if teacher is not None and fit is not None and not is_ready else None
    alone = Parts(own).strategy() if own else None
    if teacher is not None and own and alone:
        before = len(parts.errors)
        if task is not None:
            parts.check_objectives(task, alone, "teacher")
        place = functools.partial(trial_key, "teacher", student="teacher", prefix="teacher_fit.")
        parts.trial("train", alone.stages["train"], State(teacher), (data, fit, device), place, own)
        for error in parts.errors[before:]:
            error.expected = error.expected.replace("the student", "the teacher")
    trackers = parts.trackers()
    parts.stop_at_faults()
    assert data and device and strategy and recipe  # noqa: PT018 - else there were faults

    kept_tokens = None if data.vocabulary is None else data.vocabulary.kept.tolist()

    def experiment(
        config: Plain, strategy: Strategy, recipe: Recipe, teacher: Teacher | None, data: Data = data
    ) -> Experiment:
        named = [path.partition(".")[0] for _, path in outside_targets(config)] if trust is None else trust
        student = functools.partial(model_of, config["student"], config["seed"], kept_tokens)
        of_run: Plain = {"plan": config["tt"]["plan"], "config": config, "overrides": tuple(overrides)}
        of_run |= {
            "trust": tuple(named),
            "measure_latency": config["measure"]["latency"],
            "scores_test": not config["measure"].get("validation_only", False),
            "processes": number,
        }
        return Experiment(data, student, strategy, recipe, config["seed"], device, teacher, **of_run)

    labelled = replace(data, unlabelled=None)  # a teacher is trained by labels alone
    trained = experiment(own, alone, fit, None, labelled) if own and alone and fit else None
    whole = experiment(
        config, strategy, recipe, None if teacher is None else _teacher(config, trained, kept_tokens)
    )
    whole = replace(whole, trackers=trackers)
    kept = parts.from_teacher()
    if kept is None or teacher is None:
        return whole
    if kept.init is None and strategy.wants_fresh_student:
        kept = replace(kept, init=RANDOM)
    made = kept.architecture(teacher)
    student = functools.partial(build_model, made["target"], made["kwargs"], seed=config["seed"])
    return replace(whole, student=student, inherit=kept.inherit if kept.inherits else None)


def _that_fits(recipe: Recipe | None, data: Data | None) -> Recipe | None:
    """The recipe with batches of evaluation whose outputs fit into memory."""
    if recipe is None or data is None:
        return recipe
    return replace(recipe, evaluation_batch_size=data.at_once(recipe.evaluation_batch_size))


def _own_config(config: Plain) -> Plain:
    """The configuration of a teacher's own run: it is the student there, and trained alone."""
    fit = config["teacher_fit"]
    own = {k: v for k, v in config.items() if k != "teacher_fit"} | {k: fit[k] for k in _RECIPE}
    strategy = OmegaConf.load(conf_dir() / "strategy" / "train.yaml")
    strategy.stages.pop("quantize")
    seen = [unlabelled.KEY] if config["data"].get(PRUNE) else []  # by the tokenizer
    unseen = [key for key in unlabelled.KEYS if key in config["data"] and key not in seen]
    # a total, and quantization, are the student's
    own |= {
        "data": {**config["data"], **dict.fromkeys(unseen)},
        "total_epochs": None,
        "bits": None,
        "quant": {},
        "student": config["teacher"],
        "strategy": strategy,
        "tracker": {},
        "measure": {**config["measure"], "validation_only": False},  # it is no part of what is selected
    }
    return {**resolved(OmegaConf.create(own)), "teacher_fit": fit}


def _teacher(config: Plain, own: Experiment | None, kept: Sequence[int] | None) -> Teacher:
    """How a run comes by its teacher; `own` trains it, None where it has weights."""
    node = config["teacher"]
    make = functools.partial(model_of, node, config["teacher_fit"]["seed"], kept)
    if own is None and node.get("weights"):
        return Teacher(make, weights=Path(node["weights"]), has_weights=True)
    folder = weights_folder(node) if own is None else None
    if folder is not None:
        return Teacher(make, weights=folder.path, key=folder.fingerprint, has_weights=True)
    assert own is not None  # else it has weights
    key, name = _key(own), node["_target_"].rpartition(".")[2].lower()
    directory = Path(config["outputs_dir"], "teachers", f"{name}_{key}")
    return Teacher(make, None, own.run, directory, key, trust=(node["_target_"].partition(".")[0],))


def _key(own: Experiment) -> str:
    """The key under which later runs find a teacher that has been trained."""
    config = own.config
    # how often a checkpoint is written changes no weight, nor do the names of classes, nor who has which part of them
    # meanwhile; later keys that are off are left out, so that a teacher is found that was trained before there were any
    train = without(config["train"], OF_A_TRAINING)
    for name in ("checkpoint_seconds", "sharding"):
        train.pop(name, None)
    schedule = without(config["scheduler"], OF_A_SCHEDULE)
    student = {k: v for k, v in config["student"].items() if k != "class_names"}
    folder = weights_folder(student)
    if folder is not None:  # what is in it counts, wherever it is
        student["id"] = folder.fingerprint
    determined = {k: config[k] for k in _DETERMINING} | {"student": student, "train": train}
    determined |= {"scheduler": schedule}
    determined |= {"data": own.data.batches_fingerprint}
    if own.data.task.name != "classification":  # all that version 0.1 knew
        determined |= {"task": config["task"]}
    code = source_digests(sorted({path.partition(".")[0] for _, path in outside_targets(determined)}))
    if code:  # the user's own: where it changes, it is another teacher's
        determined |= {"code": code}
    if own.data.vocabulary is not None:
        determined |= {"tokens": hashlib.sha256(own.data.vocabulary.kept.tobytes()).hexdigest()}
    if config["tt"]["plan"] != FIXED:
        determined |= {"tt": config["tt"]}
    written = json.dumps(with_stored_targets(determined), sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:12]
