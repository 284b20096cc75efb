"""Whether values that were read are those of a record: everything that the program relies on has its type.

A directory may come from anywhere, so a record is judged as a whole before any of it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

STATES = ("running", "finished", "failed", "interrupted", "pruned")
_NEEDED = ("strategy", "config", "overrides", "seed")
_TEXT, _NUMBER, _MAPPING, _LIST = "a text", "a finite number", "an object", "a list"
# What may be there; a second kind is None where null is allowed.
_RECORD = {
    "strategy": _TEXT, "config": _MAPPING, "overrides": _LIST, "seed": _NUMBER, "schema": _NUMBER, "status": _TEXT,
    "created": _TEXT, "updated": _TEXT, "wall_seconds": _NUMBER, "versions": _MAPPING, "git": (_MAPPING, None),
    "hardware": _MAPPING, "resumed": _LIST, "data": _MAPPING, "task": _MAPPING, "teacher": (_MAPPING, None),
    "stages": _LIST, "final": (_TEXT, None), "model": (_MAPPING, None), "error": (_MAPPING, None),
    "search": (_MAPPING, None),
}  # fmt: skip
_STAGE = {
    "name": _TEXT, "status": _TEXT, "metrics": _MAPPING, "size": _MAPPING, "latency_ms": (_MAPPING, None),
    "latency_ms_beside": _MAPPING, "compression": _MAPPING, "layers": _MAPPING, "skipped": _MAPPING, "packages": _LIST,
    "checkpoint": _TEXT, "teacher_checkpoint": _TEXT, "files": _MAPPING, "fingerprint": _TEXT, "seconds": _NUMBER,
}  # fmt: skip
_TEACHER = {
    "key": (_TEXT, None), "source": _TEXT, "directory": _TEXT, "weights": _TEXT, "fingerprint": _TEXT,
    "metrics": _MAPPING, "size": _MAPPING, "latency_ms": (_MAPPING, None),
}  # fmt: skip
# Numbers without which a model was not measured: the table and the next stage read them. A run may leave times out, and
# those of batches that are larger than its evaluation's.
_MEASURED = {
    "size": ("num_parameters", "folder_bytes"),
    "latency_ms": ("batch_1",),
}
_CHECKPOINT = re.compile(r"checkpoints/\w[\w.-]*")


def monitor_of(task: Mapping[str, Any]) -> str:
    """The name of the metric that selects, by what a record says of its task."""
    return str(task.get("monitor", "accuracy"))


def check_record(values: Any) -> None:
    """Raise ValueError, naming the key, where `values` are not those of a record."""
    if not isinstance(values, dict) or not values.keys() >= set(_NEEDED):
        raise ValueError(f"not a record: expected a JSON object with the keys {', '.join(_NEEDED)}")
    _check(values, _RECORD, "")
    if values.get("status", STATES[0]) not in STATES:
        raise ValueError(f"status: expected one of {', '.join(STATES)}, got {values['status']!r:.80}")
    if type(values["seed"]) is not int:
        raise ValueError(f"seed: expected a whole number, got {values['seed']!r:.80}")
    if not all(isinstance(line, str) for line in values["overrides"]):
        raise ValueError("overrides: expected a list of texts")
    for key in ("type", "message"):
        if values.get("error") is not None and not isinstance(values["error"].get(key), str):
            raise ValueError(f"error.{key}: expected {_TEXT}")
    monitor = monitor_of(values.get("task", {}))
    metrics = values.get("task", {}).get("metrics", {})
    if not isinstance(metrics, dict) or not all(isinstance(each, dict) for each in metrics.values()):
        raise ValueError("task.metrics: expected an object of objects")
    measured = values["config"].get("measure")
    without_test = isinstance(measured, dict) and measured.get("validation_only") is True
    judged = [f"{split}_{monitor}" for split in ("validation", "test")[: 2 - without_test]]
    if values.get("teacher") is not None:
        _check(values["teacher"], _TEACHER, "teacher.")
        _check_measured(values["teacher"], "teacher.", judged)
    _check_stages(values.get("stages", []), judged)
    _check_files(values.get("model") or {}, "model.", re.compile(r"model/[\w.-]+"))


def _check_stages(stages: list[Any], judged: Sequence[str]) -> None:
    names = set()
    for number, stage in enumerate(stages):
        where = f"stages[{number}]."
        if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
            raise ValueError(f"{where}name: expected {_TEXT}")
        if stage["name"] in names:
            raise ValueError(f"{where}name: '{stage['name']:.80}' is there twice")
        names.add(stage["name"])
        _check(stage, _STAGE, where)
        for key in ("checkpoint", "teacher_checkpoint"):
            if not _CHECKPOINT.fullmatch(stage.get(key, "checkpoints/x")):
                raise ValueError(f"{where}{key}: expected checkpoints/NAME, got {stage[key]!r:.80}")
        if not all(isinstance(package, str) for package in stage.get("packages", [])):
            raise ValueError(f"{where}packages: expected a list of texts")
        _check_files(stage, where, re.compile(r"checkpoints/\w[\w.-]*/[\w.-]+"))
        _check_measured(stage, where, judged)
        missing = [key for key in ("checkpoint", "packages") if key not in stage]
        if missing:
            raise ValueError(f"{where}{missing[0]}: missing")


def _check_measured(values: Mapping[str, Any], where: str, judged: Sequence[str]) -> None:
    for key, names in {"metrics": judged, **_MEASURED}.items():
        if key == "latency_ms" and values.get(key) is None:
            continue
        for name in names:
            value = values.get(key, {}).get(name)
            if not _is_number(value):
                raise ValueError(f"{where}{key}.{name}: expected {_NUMBER}, got {value!r:.80}")


def _check_files(values: Mapping[str, Any], where: str, allowed: re.Pattern[str]) -> None:
    files = values.get("files", {})
    if not isinstance(files, dict):
        raise ValueError(f"{where}files: expected {_MAPPING}, got {files!r:.80}")
    for path, about in files.items():
        if not allowed.fullmatch(path) or ".." in path.split("/"):
            raise ValueError(f"{where}files: '{path:.80}' is no file of this run")
        if not isinstance(about, dict) or about.keys() != {"bytes", "sha256"}:
            raise ValueError(f"{where}files.{path}: expected bytes and sha256, got {about!r:.80}")


def _check(values: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    for key, allowed in kinds.items():
        kind, *null = allowed if isinstance(allowed, tuple) else (allowed,)
        if key in values and not (_is(values[key], kind) or values[key] in null):
            raise ValueError(f"{where}{key}: expected {kind}, got {values[key]!r:.80}")


def _is(value: Any, kind: str) -> bool:
    if kind == _NUMBER:
        return _is_number(value)
    return isinstance(value, {_TEXT: str, _MAPPING: dict, _LIST: list}[kind])


def _is_number(value: Any) -> bool:
    """Whether it is a number that arithmetic can be done with: neither true, nor infinite, nor of 5,000 digits."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
