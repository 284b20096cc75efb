"""A run's `record.json` as typed data, read tolerantly: what is missing or wrong is said, never guessed.

A tolerant view of what `run.record.read_values` reads; it imports no PyTorch, so that anything can share it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskd.compare.numbers import declare, is_fraction
from compresskd.run import RunDirectoryError
from compresskd.run.record import read_values
from compresskd.run.validity import STATES

LARGEST = 1e60  # no measurement is farther from zero, and the squares of what is nearer do not overflow
_MARKS = (
    "schema",
    "status",
    "strategy",
    "stages",
    "config",
)  # two of these tell a record from a foreign JSON


class RecordError(ValueError):
    """A file that cannot be read as a record at all. `reason` says why in words that need no path."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One compressed layer. `ranks` are the realised ones, `num_parameters_dense` what it had before."""

    kind: str
    ranks: tuple[int, ...]
    num_parameters: float | None
    num_parameters_dense: float | None


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What one stage left behind. Every mapping holds possible numbers only: fractions 0 to 1, no negative sizes."""

    name: str
    kind: str | None
    status: str | None
    seconds: float | None
    epochs: float | None
    best_epoch: float | None
    metrics: Mapping[str, float]
    size: Mapping[str, float]
    compression: Mapping[str, float]
    latency_ms: Mapping[str, float]
    layers: Mapping[str, LayerRecord]
    skipped: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataRecord:
    """Which samples a run saw: the fingerprints decide whether two runs may be compared."""

    name: str | None
    fingerprint: str | None
    test_fingerprint: str | None
    num_test: float | None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What the models were asked; records of version 0.1 say nothing, and mean classification."""

    name: str
    monitor: str  # the metric that selects
    score: str  # in words, what the score of a sample is


@dataclass(frozen=True, slots=True)
class TeacherRecord:
    """Which teacher a run had; `key` identifies it."""

    key: str | None
    source: str | None
    directory: str | None
    metrics: Mapping[str, float]
    size: Mapping[str, float]
    latency_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class HardwareRecord:
    """Where a run's latency was measured."""

    cpu: str | None
    gpu: str | None
    device: str | None
    num_threads: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """One run. `problems` lists every field that was missing or of a wrong type, by its dotted name."""

    path: Path
    schema: int | None
    status: str | None
    strategy: str | None
    created: str | None
    updated: str | None
    wall_seconds: float | None
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    seed: int | None
    versions: Mapping[str, str]
    revision: str | None
    hardware: HardwareRecord
    data: DataRecord
    task: TaskRecord
    teacher: TeacherRecord | None
    stages: tuple[StageRecord, ...]
    final: str | None
    error: str | None
    search: Mapping[str, Any]
    problems: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """The run directory: predictions.npz and metrics.jsonl lie there."""
        return self.path.parent

    def stage(self, name: str) -> StageRecord | None:
        """The stage of that name (the last one where a name occurs twice), or None."""
        return next((stage for stage in reversed(self.stages) if stage.name == name), None)

    @property
    def final_stage(self) -> StageRecord | None:
        """The stage that `final` names; without such a name the last finished stage; else None."""
        if self.final is not None:
            return self.stage(self.final)
        return next((stage for stage in reversed(self.stages) if stage.status == "finished"), None)


def read_record(path: Path, *, details: bool = True) -> Record:
    """Read one record.json; `details=False` leaves the layers out (they are most of a large record).

    Raises:
        RecordError: the file cannot be opened, is no JSON, or is the JSON of something else.
    """
    raw = _load(path)
    if not isinstance(raw, dict):
        raise RecordError(path, f"not a record: a JSON {_kind(raw)} where an object was expected")
    if sum(key in raw for key in _MARKS) < 2:
        found = ", ".join(sorted(map(str, raw))[:5]) or "none"
        raise RecordError(
            path, f"not a record of compresskd: none or one of {', '.join(_MARKS)}; keys: {found}"
        )
    task = raw.get("task")
    if isinstance(task, dict) and isinstance(task.get("metrics"), dict):
        declare(task["metrics"])
    return _record(path, _Fields(raw, "", []), details)


def _load(path: Path) -> Any:
    try:
        return read_values(path)
    except OSError as error:
        raise RecordError(path, f"cannot be read: {error.strerror}") from None
    except RunDirectoryError as error:
        raise RecordError(path, str(error).removeprefix(f"{path} ")) from None
    except ValueError as error:
        raise RecordError(path, f"not valid JSON (cut off or damaged): {error}") from None


def _record(path: Path, fields: "_Fields", details: bool) -> Record:
    hardware = fields.child("hardware")
    data, task = fields.child("data", required=True), fields.child("task")
    seed, schema = fields.number("seed", required=True), fields.number("schema", required=True)
    status = fields.text("status", required=True)
    if status is not None and status not in STATES:
        fields.complain("status", f"expected one of {', '.join(STATES)}, got {status!r}")
    return Record(
        path=path,
        schema=None if schema is None else int(schema),
        status=status,
        strategy=fields.text("strategy", required=True),
        created=fields.text("created"),
        updated=fields.text("updated"),
        wall_seconds=fields.amount("wall_seconds"),
        overrides=tuple(item for item in fields.list("overrides") if isinstance(item, str)),
        config=fields.mapping("config", required=True),
        seed=None if seed is None else int(seed),
        versions={k: str(v) for k, v in fields.mapping("versions").items()},
        revision=fields.child("git").text("revision"),
        hardware=HardwareRecord(
            hardware.text("cpu"),
            hardware.text("gpu"),
            hardware.text("device"),
            hardware.amount("num_threads"),
        ),
        data=DataRecord(
            data.text("name"),
            # without the names of classes, as version 0.1 wrote it under the other key
            data.text("batches_fingerprint") or data.text("fingerprint", required=True),
            data.text("test_fingerprint", required=True),
            data.amount("num_test"),
        ),
        task=TaskRecord(
            task.text("name") or "classification",
            task.text("monitor") or "accuracy",
            task.text("score") or "correct predictions",
        ),
        teacher=_teacher(fields),
        stages=_stages(fields, details),
        final=fields.text("final"),
        error=_error(fields.child("error")),
        search=fields.mapping("search"),
        problems=tuple(fields.problems),
    )


def _teacher(fields: "_Fields") -> TeacherRecord | None:
    if not fields.mapping("teacher"):
        return None
    teacher = fields.child("teacher")
    return TeacherRecord(
        teacher.text("key"),
        teacher.text("source"),
        teacher.text("directory"),
        teacher.metrics("metrics"),
        teacher.amounts("size"),
        teacher.amounts("latency_ms"),
    )


def _stages(fields: "_Fields", details: bool) -> tuple[StageRecord, ...]:
    stages = []
    for number, item in enumerate(fields.list("stages", required=True)):
        where = f"stages[{number}]"
        if isinstance(item, dict):
            stages.append(_stage(_Fields(item, where + ".", fields.problems), number, details))
        else:
            fields.complain(where, f"expected an object, got {_kind(item)}")
    return tuple(stages)


def _stage(fields: "_Fields", number: int, details: bool) -> StageRecord:
    status = fields.text("status")
    macs_unknown = fields.text("macs_unknown")
    if macs_unknown is not None:
        fields.complain("size.macs", f"unknown ({macs_unknown})")
    return StageRecord(
        name=fields.text("name", required=True) or f"stage {number}",
        kind=fields.text("kind"),
        status=status,
        seconds=fields.amount("seconds"),
        epochs=fields.amount("epochs"),
        best_epoch=fields.amount("best_epoch"),
        metrics=fields.metrics("metrics", required=status == "finished"),
        size=fields.amounts("size"),
        compression=fields.amounts("compression"),
        latency_ms=fields.amounts("latency_ms"),
        layers=_layers(fields.child("layers")) if details else {},
        skipped={k: str(v) for k, v in fields.mapping("skipped").items()} if details else {},
    )


def _layers(fields: "_Fields") -> dict[str, LayerRecord]:
    layers = {}
    for name in fields.raw:
        layer = fields.child(name)
        ranks = tuple(rank for rank in layer.list("ranks") if isinstance(rank, int))
        layers[name] = LayerRecord(
            layer.text("kind") or "?",
            ranks,
            layer.amount("num_parameters"),
            layer.amount("num_parameters_dense"),
        )
    return layers


def _error(fields: "_Fields") -> str | None:
    parts = [part for part in (fields.text("type"), fields.text("message")) if part]
    return ": ".join(parts)[:500] or None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true/false", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed access to one JSON object; what does not fit goes to `problems` under its dotted name."""

    raw: Mapping[str, Any]
    where: str
    problems: list[str]

    def complain(self, key: str, what: str) -> None:
        self.problems.append(f"{self.where}{key}: {what}")

    def _get(self, key: str, expected: str, required: bool) -> Any:
        value = self.raw.get(key)
        if value is None and required:
            self.complain(key, f"missing ({expected} expected)")
        return value

    def text(self, key: str, required: bool = False) -> str | None:
        value = self._get(key, "text", required)
        if value is None or isinstance(value, str):
            return value
        self.complain(key, f"expected text, got {_kind(value)}")
        return None

    def number(
        self, key: str, required: bool = False, *, low: float = -LARGEST, high: float = LARGEST
    ) -> float | None:
        value = self._get(key, "a number", required)
        if value is None:
            return None
        is_number = (type(value) is int and abs(value) < 2**63) or type(value) is float
        if not is_number or not math.isfinite(value):
            self.complain(key, f"expected a finite number, got {_kind(value)} {str(value)[:40]}")
        elif not low <= value <= high:
            self.complain(key, f"expected a number from {low:g} to {high:g}, got {value:g}")
        else:
            return value
        return None

    def amount(self, key: str) -> float | None:
        """What is counted or measured from zero: bytes, parameters, milliseconds, ratios."""
        return self.number(key, low=0.0)

    def mapping(self, key: str, required: bool = False) -> Mapping[str, Any]:
        value = self._get(key, "an object", required)
        if isinstance(value, dict):
            return value
        if value is not None:
            self.complain(key, f"expected an object, got {_kind(value)}")
        return {}

    def list(self, key: str, required: bool = False) -> list[Any]:
        value = self._get(key, "a list", required)
        if isinstance(value, list):
            return value
        if value is not None:
            self.complain(key, f"expected a list, got {_kind(value)}")
        return []

    def child(self, key: str, required: bool = False) -> "_Fields":
        return _Fields(self.mapping(key, required), f"{self.where}{key}.", self.problems)

    def amounts(self, key: str) -> dict[str, float]:
        fields = self.child(key)
        return _known({name: fields.amount(name) for name in fields.raw})

    def metrics(self, key: str, required: bool = False) -> dict[str, float]:
        fields = self.child(key, required)
        read = {
            name: fields.number(name, low=0.0, high=1.0) if is_fraction(name) else fields.number(name)
            for name in fields.raw
        }
        return _known(read)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
