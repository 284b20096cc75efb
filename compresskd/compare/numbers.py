"""What the measured numbers are called, which direction is better, and how they are shown."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from compresskd.metric import METRICS, Metric, metric_named

LATENCY = "latency_"
COSTS = ("file_bytes", "macs", "latency")  # of the Pareto fronts
_LOWER = re.compile(r"loss|error|bytes|parameters|macs|seconds|latency|perplexity")
_SPLIT = re.compile(r"^(?:teacher_)?(?:validation|test|train)_")
_declared: dict[str, Metric] = {}  # metrics of the users' own tasks, as their records say
_LABELS = {
    "num_parameters": "parameters",
    "file_bytes": "bytes",
    "model_bytes": "bytes without tokenizer",
    "compression_file_bytes": "compression (bytes)",
    "compression_parameters": "compression (parameters)",
    "compression_macs": "compression (MACs)",
    "macs": "MACs",
}


def declare(metrics: Mapping[str, Any]) -> None:
    """Take what a record says of the metrics of its task; those that compresskd knows stay as they are."""
    for name, values in metrics.items():
        if isinstance(name, str) and isinstance(values, Mapping) and name not in METRICS:
            _declared[name] = metric_named(name, values)


def metric_of(name: str) -> Metric | None:
    """The metric that a number such as `test_accuracy` is of, or None."""
    bare = _SPLIT.sub("", name)
    return METRICS.get(bare) or _declared.get(bare) if bare != name else None


def lower_is_better(name: str) -> bool:
    """Direction of a number: metrics know theirs; losses, sizes and times are better low; a compression ratio high."""
    metric = metric_of(name)
    if metric is not None:
        return not metric.higher_is_better
    return not name.startswith("compression_") and _LOWER.search(name) is not None


def is_fraction(name: str) -> bool:
    """Numbers between 0 and 1 that tables show in percent."""
    metric = metric_of(name)
    return metric.percent if metric is not None else name.endswith(("accuracy", "agreement"))


def limits(name: str) -> dict[str, float]:
    """What a number can be, as `statistics.summarize` takes it."""
    return {"low": 0.0, "high": 1.0} if is_fraction(name) else {}


def label(name: str) -> str:
    """Heading of a number: with its unit."""
    if name in _LABELS:
        return _LABELS[name]
    if name.startswith(LATENCY):
        return f"{name.replace('_', ' ')} (ms)"
    return f"{name.replace('_', ' ')} (%)" if is_fraction(name) else name.replace("_", " ")


def show(name: str, value: float | None, spread: bool = False) -> str:
    """A number as a table shows it; `spread`: a deviation or an interval's end, of the same unit."""
    if value is None:
        return "–"
    if is_fraction(name):
        return f"{100 * value:.2f}"
    if name.startswith("compression_"):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    if value == int(value) and abs(value) < 1e15 and not spread:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def pick_latency(names: Iterable[str]) -> str | None:
    """The latency that fronts and tables use: of one sample where measured, else of the smallest batch."""

    def batch(name: str) -> tuple[int, str]:
        digits = re.findall(r"\d+", name)
        return (int(digits[0]) if digits else 2**31, name)

    return min((name for name in names if name.startswith(LATENCY)), key=batch, default=None)
