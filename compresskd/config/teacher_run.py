"""The ordinary run that trains a teacher once, and the key under which later runs find it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from compresskd.config.allowed import outside_targets
from compresskd.config.parts import model_of
from compresskd.config.resolved import resolved
from compresskd.config.schema import conf_dir
from compresskd.data.base import Data
from compresskd.engine.experiment import Experiment
from compresskd.engine.teacher import Teacher
from compresskd.models.huggingface import is_trained_for, weights_folder
from compresskd.targets.stored_names import with_stored_targets
from compresskd.trust.sources import source_digests
from compresskd.tt import FIXED

Plain = dict[str, Any]
# What determines a trained teacher, beside the data.
_DETERMINING = ("student", "strategy", "optimizer", "scheduler", "train", "epochs", "seed", "precision")


def teacher_of(config: Plain, data: Data, build: Callable[[Plain], Experiment]) -> Teacher:
    """The teacher of a resolved configuration; `build` makes the experiment that trains it."""
    node = config["teacher"]
    make = functools.partial(model_of, node, config["teacher_fit"]["seed"])
    if node.get("weights"):
        return Teacher(make, weights=Path(node["weights"]))
    folder = weights_folder(node)
    if folder is not None and config["teacher_fit"]["epochs"] == 0 and is_trained_for(node):
        return Teacher(make, weights=folder.path, key=folder.fingerprint)
    own = _own_config(config)
    key = _key(own, data)
    name = node["_target_"].rpartition(".")[2].lower()
    return Teacher(
        make,
        train=build(own).run,
        directory=Path(config["outputs_dir"]) / "teachers" / f"{name}_{key}",
        key=key,
        trust=(node["_target_"].partition(".")[0],),
    )


def _own_config(config: Plain) -> Plain:
    """The teacher is the student of its own run, trained alone."""
    fit = config["teacher_fit"]
    own = {k: v for k, v in config.items() if k != "teacher_fit"}
    own |= {"total_epochs": None, "bits": None, "quant": {}}  # which are the student's
    strategy = OmegaConf.load(conf_dir() / "strategy" / "train.yaml")
    strategy.stages.pop("quantize")
    own |= {"student": config["teacher"], "strategy": strategy}
    own |= {k: fit[k] for k in ("epochs", "seed", "optimizer", "scheduler", "train")}
    return {**resolved(OmegaConf.create(own)), "teacher_fit": fit}


def _key(config: Plain, data: Data) -> str:
    # how often a checkpoint is written changes no weight, nor do the names of classes
    train = {k: v for k, v in config["train"].items() if k != "checkpoint_seconds"}
    student = {k: v for k, v in config["student"].items() if k != "class_names"}
    folder = weights_folder(student)
    if folder is not None:  # what is in it counts, wherever it is
        student |= {"id": folder.fingerprint}
    determined: Plain = {k: config[k] for k in _DETERMINING} | {
        "student": student,
        "train": train,
        "data": data.batches_fingerprint,
    }
    if data.task.name != "classification":  # all that version 0.1 knew
        determined |= {"task": config["task"]}
    outside = sorted({path.partition(".")[0] for _, path in outside_targets(determined)})
    code = source_digests(outside)
    if code:  # the user's own: where it changes, it is another teacher's
        determined |= {"code": code}
    if config["tt"]["plan"] != FIXED:
        determined |= {"tt": config["tt"]}
    return hashlib.sha256(json.dumps(with_stored_targets(determined), sort_keys=True).encode()).hexdigest()[
        :12
    ]
