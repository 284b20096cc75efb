"""Keys that have other names now: as they are written, and as earlier versions wrote them.

A record of an earlier version is read as if it had been written today; on the command line the old key is refused
with the new one named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compresskd.run.later import with_later_keys

# Of the configuration: a pattern of the whole key, and what to write instead.
KEYS = (
    (r"compress\.data_aware", "compress.whitening"),
    (r"strategy\.stages\.(\w+)\.compression\.data_aware", r"strategy.stages.\1.compression.whitening"),
    (r"quant\.student", "quant.enabled"),
    (r"quant\.vector_bits", "quant.other_bits"),
    (r"strategy\.stages\.quantize\.how", "strategy.stages.quantize.quantization"),
    (r"strategy\.stages\.(\w+)\.how", r"strategy.stages.\1.compression"),
)
_WHITENING = {"true": "input", "false": "none"}
VALUES = {"quant.estimator": {"learned_step": "lsq"}, "compress.whitening": _WHITENING}
_QUANT = {"student": "enabled", "vector_bits": "other_bits"}
_SIZES = {"stored_bytes": "folder_bytes", "compact_bytes": "file_bytes"}
_STAGE = {"ladder_rank": "scheduled_rank", "ladder_ended": "stopped_early"}


def instead_of(key: str) -> str | None:
    """Return the key that has taken the place of an old one; None for any other."""
    for pattern, new in KEYS:
        found = re.fullmatch(f"({pattern})(\\..*)?", key)
        if found:
            rest = key[len(found[1]) :]
            return re.sub(f"^{pattern}$", new, found[1]) + rest
    return None


def modern_override(override: str) -> str:
    """Return `key=value` of a record with the key's and the value's names of today."""
    sign, bare = re.match(r"[+~]*", override)[0], override.lstrip("+~")  # pyright: ignore[reportOptionalSubscript]
    key, equals, value = bare.partition("=")
    key = instead_of(key) or key
    return f"{sign}{key}{equals}{VALUES.get(key, {}).get(value, value)}"


def modern_record(values: Any) -> Any:
    """Return what record.json holds with the names of today; anything that is no record as it is."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    if isinstance(values.get("config"), dict):
        values["config"] = _config(values["config"])
    if isinstance(values.get("overrides"), list):
        values["overrides"] = [modern_override(o) if isinstance(o, str) else o for o in values["overrides"]]
    if isinstance(values.get("teacher"), dict):
        values["teacher"] = _measured(values["teacher"])
    if isinstance(values.get("stages"), list):
        values["stages"] = [
            _measured(_named(stage, _STAGE)) if isinstance(stage, dict) else stage
            for stage in values["stages"]
        ]
    return values


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    config = with_later_keys(config)
    if isinstance(config.get("quant"), dict):
        config["quant"] = _quantization(config["quant"])
    if isinstance(config.get("compress"), dict):
        config["compress"] = _compression(config["compress"])
    strategy = config.get("strategy")
    stages = strategy.get("stages") if isinstance(strategy, dict) else None
    if isinstance(strategy, dict) and isinstance(stages, dict):
        config["strategy"] = {**strategy, "stages": {name: _stage(stage) for name, stage in stages.items()}}
    return config


def _stage(stage: Any) -> Any:
    stage = _without_how(stage)
    if isinstance(stage, dict) and isinstance(stage.get("compression"), dict):
        return {**stage, "compression": _compression(stage["compression"])}
    if isinstance(stage, dict) and isinstance(stage.get("quantization"), dict):
        return {**stage, "quantization": _quantization(stage["quantization"])}
    return stage


def _compression(options: Mapping[str, Any]) -> dict[str, Any]:
    """A budget was always one of the whole model, shared by errors; nothing was made up for, no table in groups."""
    then = {key: value for key, value in options.items() if key != "data_aware"}
    if "budget" in options:
        then.setdefault("budget_over", "all")
        then.setdefault("allocation", "error")
        then.setdefault("compensation", "none")
        then.setdefault("row_groups", 1)
        then.setdefault("batch_norm", "keep")
    if isinstance(options.get("data_aware"), bool):
        then["whitening"] = _WHITENING[str(options["data_aware"]).lower()]
    return then


def _without_how(stage: Any) -> Any:
    if not isinstance(stage, dict) or not isinstance(stage.get("how"), dict):
        return stage
    of_quant = str(stage["how"].get("_target_", "")).endswith("Quantization")
    new = "quantization" if of_quant else "compression"
    return {(new if key == "how" else key): value for key, value in stage.items()}


def _quantization(options: Mapping[str, Any]) -> dict[str, Any]:
    options = _named(options, _QUANT)
    # weights were always rounded to the nearest integer, errors counted by the layer's inputs
    if "grid" in options:
        options.setdefault("rounding", "nearest")
        options.setdefault("whitening", "input")
    estimators = VALUES["quant.estimator"]
    if options.get("estimator") in estimators:
        options["estimator"] = estimators[options["estimator"]]
    return options


def _measured(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _named(value, _SIZES) if key in ("size", "compression") and isinstance(value, dict) else value
        for key, value in entry.items()
    }


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}
