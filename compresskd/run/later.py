"""Keys that later versions brought: each with the value at which a run is what it was before there was the key.

A record without them is read as if it said so, and the key of a trained teacher leaves them out, so that runs and
teachers of earlier versions are resumed, compared and found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_A_SCHEDULE = {"warmup_steps": 0, "warmup_fraction": 0.0}
OF_A_TRAINING = {
    "gradient_accumulation": 1,
    "gradient_checkpointing": False,
    "dropout": None,
    "max_steps": None,
    "validate_every": None,
    "teacher_outputs": None,
    "teacher_bits": 16,
    "sharding": None,
    "keep": "best",
}
OF_A_RUN = {
    "task": {"_target_": "compresskd.tasks.Classification"},
    "tracker": {},
    "tt": {"plan": "fixed"},
    "measure": {"latency": True, "validation_only": False},
    "processes": 1,
}


def with_later_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a record with every key that its version did not know."""
    config = _recipe({**OF_A_RUN, **config})
    for name in ("tt", "measure"):
        if isinstance(config[name], Mapping):
            config[name] = {**OF_A_RUN[name], **config[name]}
    if isinstance(config.get("teacher_fit"), Mapping):
        config["teacher_fit"] = _recipe(config["teacher_fit"])
    return config


def without(options: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options but those later ones that are at the value that changes nothing."""
    return {key: value for key, value in options.items() if (key, value) not in later.items()}


def _recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(options)
    if isinstance(options.get("train"), Mapping):
        options["train"] = {**OF_A_TRAINING, **options["train"]}
    schedule = options.get("scheduler")
    # a schedule that knows no warm-up has none
    if isinstance(schedule, Mapping) and "warmup_epochs" in schedule:
        options["scheduler"] = {**OF_A_SCHEDULE, **schedule}
    return options
