"""What a person sees: nested progress bars in a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from compresskd.run import Record
from compresskd.training import EpochRecord, StepProgress

log = logging.getLogger("compresskd")


class Reporter:
    """Shows the progress of one run. Every line also goes to the log, and so to the run's log.txt.

    Args:
        console: a terminal to draw live bars in; None, or a console that is no terminal, gives plain lines.
        prefix: put before every line (which of several runs speaks).
    """

    def __init__(self, console: Console | None = None, prefix: str = ""):
        self.console = console
        self._prefix = prefix
        self._progress: Progress | None = None
        self._stages: TaskID | None = None
        self._epochs: TaskID | None = None
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

    def note(self, text: str) -> None:
        """Say one thing that the user should know."""
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
        """A few times a second, inside an epoch."""
        if self._progress is None:
            return
        self._progress.start()  # only now: one live display at a time, and the teacher's comes first
        if self._epochs is None:
            self._epochs = self._progress.add_task("epochs", total=step.epochs, live="")
        live = f"loss {step.loss:.4f}  acc {100 * step.accuracy:.2f}%  {step.samples_per_second:,.0f}/s"
        done = step.epoch + step.step / step.steps
        self._progress.update(
            self._epochs,
            completed=done,
            total=step.epochs,
            description=f"  epoch {step.epoch + 1}/{step.epochs}",
            live=live,
        )

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """After each epoch."""
        self.note(
            f"epoch {epoch.epoch + 1:>3}/{epochs}  loss {epoch.train_loss:.4f}  "
            f"train {100 * epoch.train_accuracy:.2f}%  validation {100 * epoch.validation_accuracy:.2f}%  "
            f"lr {epoch.lr:.2g}  {epoch.samples_per_second:,.0f} samples/s  {epoch.seconds:.1f} s"
        )

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """A stage has been scored and saved."""
        if self._progress is not None and self._epochs is not None:
            self._progress.remove_task(self._epochs)
            self._epochs = None
        metrics = entry["metrics"]
        self.note(
            f"{entry['name']}: validation {100 * metrics['validation_accuracy']:.2f}%  "
            f"test {100 * metrics['test_accuracy']:.2f}%  {entry['size']['num_parameters']:,} parameters  "
            f"{entry['size']['stored_bytes']:,} bytes"
        )
        for name, reason in entry["skipped"].items():
            self.note(f"{entry['name']}: {name} left dense ({reason})")

    def close(self) -> None:
        """Take the bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def configure_logging(console: Console) -> None:
    """Send the package's log to `console`: through rich in a terminal (beside live bars), else as plain lines."""
    handler: logging.Handler
    if console.is_terminal:
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


def stages_table(record: Record) -> Table:
    """Stage by stage: accuracy, agreement, size, compression, latency; the teacher first.

    Latencies stand with their speed-up over the dense student and over the teacher, measured in turn.
    """
    table = Table(title=f"{record.strategy}, seed {record.seed}", caption=_caption(record))
    table.add_column("model")
    for heading in (
        "val %", "test %", "agree %", "parameters", "bytes", "x param", "x bytes", "MACs",
        "ms b1", "ms b32", "x dense b32", "x teacher b32",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    if record.teacher is not None:
        table.add_row("teacher", *_cells(record.teacher))
    for entry in record.stages:
        table.add_row(entry["name"], *_cells(entry), style="bold" if entry["name"] == record.final else None)
    return table


def _caption(record: Record) -> str:
    if record.teacher is None:
        return "latency: median of interleaved runs; x dense: against this student before any compression"
    return "x: times smaller or faster than the teacher (param, bytes, teacher b32) or the dense student (dense b32)"


def _cells(entry: Mapping[str, Any]) -> list[str]:
    metrics, size, latency = entry["metrics"], entry["size"], entry["latency_ms"]
    ratio, beside = entry.get("compression", {}), entry.get("latency_ms_beside", {})
    return [
        _percent(metrics.get("validation_accuracy")),
        _percent(metrics.get("test_accuracy")),
        _percent(metrics.get("teacher_agreement")),
        f"{size['num_parameters']:,}",
        f"{size['stored_bytes']:,}",
        _times(ratio.get("num_parameters")),
        _times(ratio.get("stored_bytes")),
        f"{size['macs']:,}",
        f"{latency['batch_1']:.3f}",
        f"{latency['batch_32']:.3f}",
        _speed_up(beside.get("dense_student"), latency),
        _speed_up(beside.get("teacher"), latency),
    ]


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _speed_up(other: Mapping[str, float] | None, mine: Mapping[str, float]) -> str:
    return "" if other is None else f"{other['batch_32'] / mine['batch_32']:.2f}"
