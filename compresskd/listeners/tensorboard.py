"""TensorBoard: a folder of events for each run."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from compresskd.listeners.tracker import Job, check_writable, library
from compresskd.run.ownership import EVENTS

_WRITER = "tensorboard.summary.writer.event_file_writer"


@dataclass(frozen=True)
class TensorBoard:
    """Write a run's values as events.

    Attributes:
        directory: gets a folder for each run, by its name; None writes into the run's own folder, `tensorboard/`.
    """

    directory: str | None = None
    max_model_bytes: ClassVar[int] = 0  # there are no files in TensorBoard

    def check(self, outputs: Path) -> None:
        """Errors as `Tracker.check`'s."""
        library(_WRITER)
        check_writable("directory", Path(self.directory or outputs))

    def open(self, job: Job) -> _Events:
        """Write on, in a further file, where the run was followed before."""
        if self.directory:
            folder = Path(self.directory, job.name)
            return _Events(folder, job, identity=str(folder))
        return _Events(job.directory / EVENTS, job, identity=EVENTS)  # wherever the run is moved


class _Events:
    """The events of one run."""

    def __init__(self, folder: Path, job: Job, identity: str):
        self._folder, self.identity = str(folder), identity
        if job.identity == self.identity:
            _ = self._scalars  # before a further file is there
        self._writer = library(_WRITER).EventFileWriter(self._folder)
        if job.identity != self.identity:
            summaries = library("tensorboard.plugins.hparams.summary_v2")
            self._write(summaries.hparams_pb(dict(job.parameters), trial_id=job.name))

    @cached_property
    def _scalars(self) -> dict[str, set[int]]:
        accumulators = library("tensorboard.backend.event_processing.event_accumulator")
        read = accumulators.EventAccumulator(self._folder, size_guidance={"scalars": 0})
        read.Reload()
        return {name: {event.step for event in read.Scalars(name)} for name in read.Tags()["scalars"]}

    def steps(self, name: str) -> Collection[int]:
        """Errors and result as `Following.steps`'."""
        return self._scalars.get(name, ())

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One event, so that a killed process leaves all of it or nothing."""
        summary = library("tensorboard.compat.proto.summary_pb2").Summary
        self._write(summary(value=[summary.Value(tag=k, simple_value=v) for k, v in values.items()]), step)

    def finish(self, status: str, table: str, files: Sequence[Path]) -> None:
        """The table and the status as texts."""
        for tag, text in (("results", table), ("status", status)):
            self._write(_text(tag, text))
        self._writer.close()

    def _write(self, summary: Any, step: int = 0) -> None:
        event = library("tensorboard.compat.proto.event_pb2").Event
        self._writer.add_event(event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()


def _text(tag: str, text: str) -> Any:
    """A text as TensorBoard's plugin for texts reads it."""
    proto = library("tensorboard.compat.proto.summary_pb2")
    tensor = library("tensorboard.compat.proto.tensor_pb2").TensorProto
    metadata = proto.SummaryMetadata(plugin_data=proto.SummaryMetadata.PluginData(plugin_name="text"))
    value = tensor(dtype="DT_STRING", string_val=[text.encode()], tensor_shape={"dim": [{"size": 1}]})
    return proto.Summary(
        value=[proto.Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=value)]
    )
