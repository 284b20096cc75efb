"""What happened in a run, everything a reviewer asks for: `record.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskd.metric import ACCURACY, Metric, metric_named
from compresskd.run.errors import RunDirectoryError
from compresskd.run.files import read_bytes
from compresskd.run.ownership import RECORD
from compresskd.run.renamed import modern_record
from compresskd.run.validity import check_record, monitor_of

SCHEMA = 1
RUNNING, FINISHED, FAILED, INTERRUPTED, PRUNED = "running", "finished", "failed", "interrupted", "pruned"
MAX_BYTES = 2**26  # of a record, which is some kilobytes
_FEW = 10  # samples; below, every one has to be judged alike
_SURROUNDINGS = ("git", "versions", "hardware", "processes")


@dataclass
class Record:
    """What `record.json` holds. Accuracies are fractions, times are seconds, sizes are bytes.

    `task` says what was asked of the models: its name, its metrics with their directions, and the one that selects;
    it is empty in records of version 0.1, which knew classification alone.

    `wall_seconds` sums over the processes that worked on the run (a killed one counts up to its last
    checkpoint). `resumed` has an entry for each time the run was resumed: when, and whatever of git,
    versions, hardware and the number of processes was not as recorded at the beginning. `processes` is how many worked
    on it together; of several, `hardware.devices` has the device of each. `model` says what the files in model/ take,
    and how the bytes of the compact one split. `files` there, and in each stage, are the sizes and SHA-256 of the files
    that were written, by path. `signature` is there where code outside of compresskd takes part: see
    `compresskd.trust`. `search` says of which search a run is a trial, or the answer. A number that is none (NaN) is
    null.
    """

    strategy: str
    config: dict[str, Any]
    overrides: list[str]
    seed: int
    schema: int = SCHEMA
    status: str = RUNNING
    created: str = ""
    updated: str = ""
    wall_seconds: float = 0.0
    processes: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    final: str | None = None
    model: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    signature: dict[str, Any] | None = None
    search: dict[str, Any] | None = None

    @property
    def monitor(self) -> Metric:
        """The metric that selects the best epoch."""
        return metrics_of(self.task)[monitor_of(self.task)]

    def stage(self, name: str | None) -> dict[str, Any] | None:
        """The entry of the stage called `name`, or None where that stage has not finished."""
        return next((s for s in self.stages if s["name"] == name), None)

    def changed_surroundings(self, now: Record) -> dict[str, Any]:
        """Git revision, versions, hardware and processes of `now` where they are not those of this record."""
        return {k: getattr(now, k) for k in _SURROUNDINGS if getattr(now, k) != getattr(self, k)}

    @classmethod
    def of(cls, values: Any) -> Record:
        """Return the record of what `read_values` read, without keys of later versions.

        Raises ValueError where it is not one.
        """
        values = plain(values)  # earlier versions wrote NaN
        check_record(values)
        return cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})


def changed_data(then: Record, now: Record) -> str:
    """In words, how the data of a run differ from those that it was begun on; empty where they do not.

    Records of version 0.1 do not know the names of classes: those are compared by the batches alone.
    """
    before, after = then.data.get("class_names"), now.data.get("class_names")
    key = "batches_fingerprint" if before is None else "fingerprint"
    was, is_now = then.data.get("fingerprint"), now.data.get(key)
    if was == is_now:
        unlabelled = [data.get("unlabelled") for data in (then.data, now.data)]
        return (
            "" if unlabelled[0] == unlabelled[1] else "unlabelled samples {} then, {} now".format(*unlabelled)
        )
    if before is not None and before != after:
        return f"{_changed_names(before, after or [])}: fingerprint {was} then, {is_now} now"
    return f"fingerprint {was} then, {is_now} now"


def _changed_names(before: list[str], after: list[str]) -> str:
    if len(before) != len(after):
        return f"{len(before)} classes then, {len(after)} now"
    label = next(i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
    return f"class {label} was {before[label]!r}, it is {after[label]!r} now"


def read_values(path: Path) -> Any:
    """Read the JSON of a record.json, with the names of today; whether it is a record is not judged.

    Raises:
        OSError: it is not there, or may not be read.
        RunDirectoryError: it is no ordinary file, or too large.
        ValueError: it is no JSON.
    """
    content = read_bytes(path, at_most=MAX_BYTES)
    if not content.strip():
        raise ValueError("empty file")
    try:
        return modern_record(json.loads(content))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_record(directory: Path) -> Record:
    """Read DIRECTORY/record.json. Raises RunDirectoryError saying what is wrong with it."""
    path = directory / RECORD
    try:
        return Record.of(read_values(path))
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(
            f"{directory} is not a run directory: it has no {RECORD} (a run that was stopped before it wrote "
            "one has nothing to resume: start it again)"
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error


def metrics_of(task: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of a record's task by name, the one that selects among them."""
    named = task.get("metrics") or {ACCURACY.name: {"percent": True}}
    return {name: metric_named(name, values) for name, values in {monitor_of(task): {}, **named}.items()}


def is_reproduced(metric: Metric, value: float, recorded: float, num_samples: int) -> bool:
    """Whether predictions differ from the recorded ones on at most 0.1% of the samples (or one of ten and more).

    Other hardware and other thread numbers add in another order, which can tip a sample at the border. A metric that
    is no fraction of samples may differ by 0.1% of itself.
    """
    if not metric.percent:
        return num_samples > 0 and abs(value - recorded) <= 1e-3 * max(abs(recorded), 1e-3)
    allowed = max(1.0 if num_samples >= _FEW else 0.0, num_samples / 1000)
    return num_samples > 0 and abs(value - recorded) * num_samples <= allowed + 1e-6


def plain(value: Any) -> Any:
    """Values as JSON has them: a number that is infinite or none becomes null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
