"""metrics.jsonl: the training curve of a run, read tolerantly and thinned to what a plot can show."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskd.compare.records import LARGEST
from compresskd.run import RunDirectoryError, read_bytes

METRICS = "metrics.jsonl"
MAX_BYTES = 32 * 2**20
MAX_POINTS = 200


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of one quantity over a run's epochs, counted through all its stages; gaps are left out.

    `starts` are the epochs at which a stage begins, with its name; `total` the points before thinning.
    """

    points: tuple[tuple[int, float], ...]
    starts: tuple[tuple[int, str], ...]
    total: int


def read_epochs(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order; of an epoch that was repeated after a resume the last.

    Lines that are damaged (the last one of a killed run) are left out; no file that can be read is no lines.
    """
    epochs: dict[tuple[str, int], dict[str, Any]] = {}
    try:
        content = read_bytes(directory / METRICS, at_most=MAX_BYTES)
    except (OSError, RunDirectoryError):
        return []
    for number, text in enumerate(content.split(b"\n")):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            epoch = line.get("epoch")
            key = (str(line.get("stage", "")), epoch if isinstance(epoch, int) else number)
            epochs.pop(key, None)  # so that it moves to its new place
            epochs[key] = line
    return list(epochs.values())


def curve(epochs: Sequence[dict[str, Any]], name: str, max_points: int = MAX_POINTS) -> Curve:
    """One quantity of `read_epochs`."""
    points = [(i, float(line[name])) for i, line in enumerate(epochs) if _is_number(line.get(name))]
    starts = []
    for index, line in enumerate(epochs):
        stage = str(line.get("stage", ""))
        if index == 0 or stage != str(epochs[index - 1].get("stage", "")):
            starts.append((index, stage))
    return Curve(tuple(thin(points, max_points)), tuple(starts), len(points))


def thin(points: Sequence[tuple[int, float]], max_points: int) -> list[tuple[int, float]]:
    """At most `max_points` evenly spaced points, the first and the last among them."""
    if len(points) <= max_points:
        return list(points)
    step = (len(points) - 1) / (max_points - 1)
    return [points[round(index * step)] for index in range(max_points)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
