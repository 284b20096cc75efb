"""Two runs of one configuration side by side: what is equal, bit for bit, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compresskd.config.recorded import differences
from compresskd.run import Record, read_record
from compresskd.run.ownership import PREDICTIONS

TIMES = frozenset(
    {"seconds", "train_seconds", "seconds_saved", "samples_per_second", "latency_ms", "latency_ms_beside"}
)
# whether a teacher was trained or found is the story of a folder, not of the numbers
_STORIES = frozenset({"source", "directory"})
_PARTS = ("metrics", "layers", "plans", "size", "compression")
_MODEL = "model/model.ckd"


@dataclass(frozen=True)
class Row:
    """One thing that two runs were compared in.

    Attributes:
        what: its name.
        found: each place where they differ; empty where all is equal.
    """

    what: str
    found: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.found


def compare_runs(one: Path, other: Path) -> list[Row]:
    """Compare two run directories in all but times: status, epochs, teacher, stages, predictions and the model file.

    Raises:
        RunDirectoryError: one of them has no record that can be read.
    """
    records = read_record(one), read_record(other)
    return [
        *(Row(what, tuple(differences(*map(part, records)))) for what, part in _record_parts().items()),
        Row("epochs", tuple(differences(_epochs(one), _epochs(other)))),
        *(
            [Row("predictions", tuple(_different_predictions(one, other)))]
            if _has_predictions(one, other)
            else []
        ),
        Row(_MODEL, tuple(_different_bytes(one / _MODEL, other / _MODEL))),
    ]


def surroundings(then: Record, now: Record) -> list[str]:
    """Why bit equality of two runs is not promised: versions and hardware that differ, plans that were measured."""
    said = [
        f"made with {key} {before.get(key)}, now {after.get(key)}"
        for before, after in ((then.versions, now.versions), (then.hardware, now.hardware))
        for key in sorted({*before, *after} - {"hostname_hash"})
        if before.get(key) != after.get(key)
    ]
    if any(stage.get("plans", {}).get("source") == "measured" for stage in (*then.stages, *now.stages)):
        said.append("made with tt.plan=measured, which follows the timings of the day")
    return [f"{reason}: bit equality is not promised" for reason in said]


def untimed(value: Any) -> Any:
    """Plain values without what a clock said."""
    if isinstance(value, Mapping):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def _record_parts() -> dict[str, Callable[[Record], Any]]:
    """What a record says, by what a person would ask for."""

    def of_stages(key: str) -> Callable[[Record], Any]:
        return lambda record: {s["name"]: untimed(s.get(key)) for s in record.stages}

    def rest(record: Record) -> Any:
        known = (*_PARTS, "name")
        stages = {s["name"]: untimed({k: v for k, v in s.items() if k not in known}) for s in record.stages}
        return {"final": record.final, **stages}

    return {
        "status": lambda record: {"status": record.status},
        "data": lambda record: record.data,
        "teacher": lambda record: {
            k: v for k, v in untimed(record.teacher or {}).items() if k not in _STORIES
        },
        "metrics": of_stages("metrics"),
        "ranks": of_stages("layers"),
        "plans": of_stages("plans"),
        "sizes": lambda record: (
            {s["name"]: {k: untimed(s.get(k)) for k in ("size", "compression")} for s in record.stages}
            | {"model": record.model}
        ),
        "other details": rest,
    }


def _epochs(directory: Path) -> dict[str, Any]:
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    values = [untimed(json.loads(line)) for line in lines]
    # a line twice would hide behind its like, so its number is part of its name
    return {f"line {k} ({v['stage']}, epoch {v['epoch']})": v for k, v in enumerate(values, 1)}


def _has_predictions(*directories: Path) -> bool:
    """Whether any has some: a run that is judged on validation alone has none."""
    return any((directory / PREDICTIONS).exists() for directory in directories)


def _different_predictions(one: Path, other: Path) -> Iterator[str]:
    with np.load(one / PREDICTIONS) as before, np.load(other / PREDICTIONS) as after:
        for name in sorted({*before, *after}):
            if name not in before or name not in after:
                yield f"{name}: only in {'the original' if name in before else 'the repetition'}"
            elif before[name].shape != after[name].shape:
                yield f"{name}: {len(before[name])} predictions, now {len(after[name])}"
            elif not np.array_equal(before[name], after[name]):
                count = int((before[name] != after[name]).sum())
                yield f"{name}: {count} of {len(before[name])} differ"


def _different_bytes(one: Path, other: Path) -> Iterator[str]:
    contents = [path.read_bytes() if path.is_file() else None for path in (one, other)]
    if None in contents or contents[0] != contents[1]:
        sizes = ["missing" if content is None else f"{len(content)} bytes" for content in contents]
        yield f"{sizes[0]}, now {sizes[1]}" + ("" if sizes[0] != sizes[1] else " of other content")
