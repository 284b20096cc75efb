"""What a person sees: nested progress bars in a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from compresskd.engine.events import log, shown
from compresskd.measure.coverage import uncovered
from compresskd.metric import ACCURACY, METRICS, Metric
from compresskd.run import Record, factors
from compresskd.run.record import metrics_of
from compresskd.training import EpochRecord, StepProgress

_MAX_NAMED = 4  # modules in one warning
_SECONDS = 60.0  # between two plain lines inside an epoch


class Reporter:
    """Shows the progress of one run. Every line also goes to the log, and so to the run's log.txt.

    Args:
        console: a terminal to draw live bars in; None, or a console that is no terminal, gives plain lines.
        prefix: put before every line (which of several runs speaks).
    """

    def __init__(self, console: Console | None = None, prefix: str = ""):
        self.console = console
        self._prefix = prefix
        self._monitor = ACCURACY
        self._progress: Progress | None = None
        self._stages: TaskID | None = None
        self._epochs: TaskID | None = None
        self._said = time.monotonic()  # when the last line was written
        if console is not None and console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:<24}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:>6.6g}/{task.total:g}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[live]}"),
                console=console,
                transient=True,
            )

    def begin(self, directory: Path, record: Record) -> None:
        """A run begins: the metric that is shown is the one that selects its epochs.

        What is worth telling of the data is said once, not again for a teacher's own run.
        """
        self._monitor = record.monitor
        for notice in record.data.get("notices", ()) if not self._prefix else ():
            self.note(f"data: {notice['text']}")

    def note(self, text: str) -> None:
        """Say one thing that the user should know."""
        self._said = time.monotonic()
        log.info("%s%s", self._prefix, text)

    def stage(self, name: str, number: int, total: int) -> None:
        """A stage begins: `number` counts from 0 to `total` - 1."""
        self.note(f"stage {number + 1}/{total}: {name}")
        if self._progress is not None:
            if self._stages is None:
                self._stages = self._progress.add_task("stages", total=total, live="")
            self._progress.update(
                self._stages, completed=number, description=f"{self._prefix}{name}", total=total
            )

    def step(self, step: StepProgress) -> None:
        """A few times a second, inside an epoch: the bar moves on, or a line is written now and then."""
        if self._progress is None and time.monotonic() - self._said < _SECONDS:
            return
        values = {name: METRICS.get(name, Metric(name)).shown(value) for name, value in step.metrics.items()}
        running = "".join(f"  {name} {value}" for name, value in values.items())
        place = f"{step.unit} {step.epoch + 1}/{step.epochs}"
        if self._progress is None:
            self.note(
                f"{place}, {step.step:,} of {step.steps:,} steps  loss {step.loss:.4f}{running}  "
                f"{_rate(step.samples_per_second)} samples/s"
            )
            return
        self._progress.start()  # only now: one live display at a time, and the teacher's comes first
        if self._epochs is None:
            self._epochs = self._progress.add_task("epochs", total=step.epochs, live="")
        self._progress.update(
            self._epochs,
            completed=step.epoch + step.step / step.steps,
            total=step.epochs,
            description=f"  {place}",
            live=f"loss {step.loss:.4f}{running}  {_rate(step.samples_per_second)}/s",
        )

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """After each epoch."""
        self.note(
            f"epoch {epoch.epoch + 1:>3}/{epochs}  loss {epoch.train['loss']:.4f}  "
            f"{self._metrics_of(epoch)}  "
            f"lr {epoch.lr:.2g}  {_rate(epoch.samples_per_second)} samples/s  {epoch.seconds:.1f} s"
        )

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """A stage has been scored and saved."""
        if self._progress is not None and self._epochs is not None:
            self._progress.remove_task(self._epochs)
            self._epochs = None
        metrics = entry["metrics"]
        self.note(
            f"{entry['name']}: {shown(self._monitor, metrics)}  {entry['size']['num_parameters']:,} parameters  "
            f"{entry['size'].get('file_bytes', entry['size']['folder_bytes']):,} bytes"
        )
        if entry.get("macs_unknown"):
            self.note(f"{entry['name']}: MACs unknown ({entry['macs_unknown']})")
        for name, reason in entry["skipped"].items():
            self.note(f"{entry['name']}: {name} left as it was ({reason})")
        if entry["layers"] and (large := uncovered(entry.get("coverage", {}))):
            first = ", ".join(
                f"{name} {100 * share:.0f}%" for name, share in list(large.items())[:_MAX_NAMED]
            )
            more = f" and {len(large) - _MAX_NAMED} more" if len(large) > _MAX_NAMED else ""
            self.note(
                f"{entry['name']}: warning: {100 * sum(large.values()):.0f}% of the bytes are in modules "
                f"that are never compressed: {first}{more}"
            )

    def _metrics_of(self, epoch: EpochRecord) -> str:
        """The metric that selects, on the training batches where it is followed there, and on validation."""
        name = self._monitor.name
        label = "" if self._monitor == ACCURACY else f"{name} "
        values = {"train": epoch.train.get(name), "validation": epoch.validation[name]}
        return "  ".join(
            f"{split} {label}{self._monitor.shown(value)}"
            for split, value in values.items()
            if value is not None
        )

    def of_teacher(self) -> Reporter:
        """Return another one for the same console, every line of which says that it is about the teacher."""
        return Reporter(self.console, prefix="teacher: ")

    def end(self, record: Record) -> None:
        """Take the bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def configure_logging(console: Console) -> None:
    """Send the package's log to `console`: through rich in a terminal (beside live bars), else as plain lines; nowhere
    where it is quiet."""
    handler: logging.Handler
    if console.quiet:
        handler = logging.NullHandler()
    elif console.is_terminal:
        handler = RichHandler(
            console=console,
            show_level=False,
            show_path=False,
            show_time=False,
            markup=False,
            highlighter=None,
        )
    else:
        handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for old in list(log.handlers):
        log.removeHandler(old)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


_ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("agreement with teacher %", lambda e: _percent(e["metrics"].get("teacher_agreement"))),
    ("parameters", lambda e: f"{e['size']['num_parameters']:,}"),
    ("  times fewer than teacher", lambda e: _times(e.get("compression", {}).get("num_parameters"))),
    ("bytes of the folder", lambda e: f"{e['size']['folder_bytes']:,}"),
    ("bytes of model.ckd", lambda e: _count(e["size"].get("file_bytes"))),
    ("  of these the tokenizer", lambda e: _count(e["size"].get("tokenizer_bytes"))),
    ("  times smaller than teacher", lambda e: _times(_of_bytes(e.get("compression", {})))),
    ("MACs", lambda e: _count(e["size"]["macs"]) or "unknown"),
    ("latency, batch 1, ms", lambda e: _milliseconds(e, "batch_1")),
    ("latency, batch 32, ms", lambda e: _milliseconds(e, "batch_32")),
    ("  times faster than dense student", lambda e: _speed_up(e, "dense_student")),
    ("  times faster than teacher", lambda e: _speed_up(e, "teacher")),
    ("wall time, s", lambda e: f"{e['seconds']:.1f}" if "seconds" in e else ""),
)


def stages_table(record: Record) -> Table:
    """One column for the teacher and each stage: accuracy, agreement, size, compression, latency.

    Speed-ups at batch 32 are of medians measured in turn with the model that they are against.
    """
    table = Table(title=f"{record.strategy}, rank {record.config.get('rank')}, seed {record.seed}")
    table.add_column("")
    entries = [*([{"name": "teacher", **record.teacher}] if record.teacher else []), *record.stages]
    for entry in entries:
        style = "bold" if entry["name"] == record.final else None
        table.add_column(entry["name"], justify="right", style=style, no_wrap=True)
    for heading, cell in (*_metric_rows(record), *_ROWS):
        cells = [cell(entry) for entry in entries]
        if any(cells):
            table.add_row(heading, *cells)
    table.caption = _factors(record)
    return table


def _metric_rows(record: Record) -> list[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    """The metric that selects on validation and test, then what else the task is judged by on test."""
    monitor = record.monitor
    others = [m for m in metrics_of(record.task).values() if m.name != monitor.name]
    wanted = [("validation", monitor), ("test", monitor), *(("test", metric) for metric in others)]
    return [_metric_row(split, metric) for split, metric in wanted]


def _metric_row(split: str, metric: Metric) -> tuple[str, Callable[[Mapping[str, Any]], str]]:
    heading = f"{split} {metric.name.replace('_', ' ')}{' %' if metric.percent else ''}"

    def cell(entry: Mapping[str, Any]) -> str:
        value = entry["metrics"].get(f"{split}_{metric.name}")
        return "" if value is None else metric.shown(value).removesuffix("%")

    return heading, cell


def _factors(record: Record) -> str | None:
    """What the final model's ratio of bytes is made of, where it is of more than the student."""
    teacher, final = record.teacher or {}, record.stage(record.final) or {}
    found = factors(teacher.get("size"), final.get("size", {}))
    if all(abs(value - 1) < 0.01 for name, value in found.items() if name != "student"):
        return None
    parts = " x ".join(f"{value:.3g} {name}" for name, value in found.items())
    return f"{record.final}: {math.prod(found.values()):.4g} times smaller = {parts}"


def _rate(number: float) -> str:
    """Whole where it is large."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _of_bytes(values: Mapping[str, float]) -> float | None:
    """Of the compact file; runs of earlier versions have the folder alone."""
    return values.get("file_bytes", values.get("folder_bytes"))


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _milliseconds(entry: Mapping[str, Any], batch: str) -> str:
    """Nothing where the run did not measure the latency of such a batch."""
    time = (entry.get("latency_ms") or {}).get(batch)
    return "" if time is None else f"{time:.3f}"


def _speed_up(entry: Mapping[str, Any], name: str) -> str:
    """Of the largest batch."""
    own, other = entry.get("latency_ms"), entry.get("latency_ms_beside", {}).get(name)
    batch = "batch_32" if "batch_32" in (own or {}) else "batch_1"
    return "" if own is None or other is None else f"{other[batch] / own[batch]:.2f}"
