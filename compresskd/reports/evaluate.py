"""Score a finished run's model again, and say whether the recorded figure is reproduced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compresskd import artifact, tt
from compresskd.data.base import Data, Split
from compresskd.metric import Metric
from compresskd.run import FINISHED, Record, RunDirectoryError, changes, is_reproduced
from compresskd.run.ownership import MODEL, PREDICTIONS
from compresskd.run.predictions import read_predictions
from compresskd.tasks import logits_of
from compresskd.training import evaluate


class NotAsRecorded(RuntimeError):
    """The model's files are not those that the run wrote."""


class CannotEvaluate(RunDirectoryError):
    """The run has no finished model, or the data does not fit it."""


@dataclass(frozen=True)
class Verdict:
    """A model scored again.

    Attributes:
        stage: whose model it is.
        metric: by which the run's task selects.
        value: of it, on the test split.
        recorded: the value in the record, or None where there is none to reproduce.
        num_samples: in the test split.
        verified: whether the model's files are those whose fingerprints the record has; False where it has none.
        reason: why there is nothing to reproduce.
    """

    stage: str
    metric: Metric
    value: float
    recorded: float | None
    num_samples: int
    verified: bool = True
    reason: str = "other data than the run's"

    @property
    def reproduced(self) -> bool | None:
        """Whether the value is the recorded one (see `is_reproduced`); None where there is none."""
        if self.recorded is None:
            return None
        return is_reproduced(self.metric, self.value, self.recorded, self.num_samples)

    def __str__(self) -> str:
        name = self.metric.name.replace("_", " ")
        scored = f"{self.stage}: test {name} {self.metric.shown(self.value)} of {self.num_samples:,} samples"
        if self.recorded is None:
            return f"{scored} ({self.reason}: nothing to reproduce)"
        verdict = "reproduced" if self.reproduced else "NOT reproduced"
        unverified = "" if self.verified else " (no fingerprint in the record: it may be another model)"
        return f"{scored}; recorded {self.metric.shown(self.recorded)}: {verdict}{unverified}"


def evaluate_run(
    directory: Path, record: Record, data: Data, *, stage: str | None = None, trust: tuple[str, ...] = ()
) -> Verdict:
    """Load the model of a finished run, in both forms that it is taken away in, or that of a stage's checkpoint;
    see that it is the one that was recorded, and score it on the test split of `data`.

    Args:
        directory: of the run.
        record: of the run.
        data: the run's, or other data of the same shape and classes.
        stage: whose checkpoint to score instead of the final model.
        trust: as `artifact.load`'s.

    Raises:
        NotAsRecorded: a file is missing, changed, or holds another model than the record says.
        CannotEvaluate: no such stage has finished, or the data has other classes or another shape.
        artifact.ArtifactError: the model's files are damaged.
    """
    entry = _entry(directory, record, stage)
    files = entry.get("files") if stage else (record.model or {}).get("files")
    for change in changes(directory, files or {}):
        raise NotAsRecorded(f"{change}: NOT reproduced")
    model = _model(directory, entry, stage, trust)
    config = record.config
    shape, batch_size = _settings(directory, config)
    _check_fits(model, data, shape)
    if data.task.targets_of_teacher:
        data = replace(data, test=_with_stored_targets(directory, record, data))
    with tt.plans(config.get("tt", {}).get("plan", tt.FIXED)):
        scores = evaluate(model, data.test, data.task, batch_size=data.at_once(batch_size))
    if not math.isfinite(scores.loss):
        raise CannotEvaluate(
            f"{directory}: the model of stage '{entry['name']}' answers NaN or infinity on the test split (mean loss "
            f"{scores.loss}): its scores mean nothing"
        )
    same = data.test.fingerprint == record.data.get("test_fingerprint")
    names = record.data.get("class_names")
    same = same and names in (None, [str(name) for name in data.class_names])  # version 0.1 kept no names
    monitor = record.monitor
    recorded = entry["metrics"].get(f"test_{monitor.name}") if same else None
    value = scores.values[monitor.name]
    verdict = Verdict(entry["name"], monitor, value, recorded, len(data.test), verified=bool(files))
    return replace(verdict, reason="the run was judged on validation alone") if same else verdict


def _with_stored_targets(directory: Path, record: Record, data: Data) -> Split:
    """The test split with what the teacher said of it, as the run kept it."""
    if data.test.fingerprint != record.data.get("test_fingerprint"):
        raise CannotEvaluate(
            f"{directory}: task {data.task.name} is judged by the teacher's answers, which the run has for its own "
            "test split alone; evaluate it without other data"
        )
    path, test = directory / PREDICTIONS, data.test
    targets = torch.from_numpy(read_predictions(path)["targets"]).float()
    if len(targets) != len(test):
        raise CannotEvaluate(f"{path} has {len(targets):,} targets for {len(test):,} test samples")
    changed: Any = test
    return replace(changed, targets=targets)


def _model(
    directory: Path, entry: Mapping[str, Any], stage: str | None, trust: tuple[str, ...]
) -> torch.nn.Module:
    """The model that is scored; the forms of the final one hold the same, and it is the one that was recorded."""
    path = directory / entry["checkpoint"]
    if stage is None and ("fingerprint" in entry or (directory / MODEL).exists()):
        path = directory / MODEL
    model = artifact.load(path, trust=trust)
    fingerprint = artifact.fingerprint(model)
    if fingerprint != entry.get("fingerprint", fingerprint):
        raise NotAsRecorded(
            f"{path} holds another model than stage '{entry['name']}' ended with: NOT reproduced"
        )
    compact = path / "model.ckd"
    if compact.exists() and artifact.fingerprint(artifact.load(compact, trust=trust)) != fingerprint:
        raise NotAsRecorded(f"{compact} holds another model than {path}: NOT reproduced")
    return model


def _entry(directory: Path, record: Record, stage: str | None) -> Mapping[str, Any]:
    """What the record says of the stage to score."""
    finished = ", ".join(s["name"] for s in record.stages) or "none"
    if stage is None and record.status != FINISHED:
        raise CannotEvaluate(
            f"{directory} is not finished (it is {record.status}); resume it by: compresskd resume {directory}, "
            f"or name a finished stage; finished are: {finished}"
        )
    entry = record.stage(stage or record.final)
    if entry is None:
        raise CannotEvaluate(
            f"{directory} has no finished stage '{stage or record.final}'; finished are: {finished}"
        )
    return entry


def _settings(directory: Path, config: Mapping[str, Any]) -> tuple[list[int] | None, int]:
    """Shape of the inputs, and the batch size with which the run scored."""
    try:
        shape, size = config["data"].get("input_shape"), config["train"]["evaluation_batch_size"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CannotEvaluate(f"{directory}: record.json: its configuration has no {error}") from error
    if type(size) is not int or size < 1 or not isinstance(shape, list | None):
        raise CannotEvaluate(
            f"{directory}: record.json: its configuration says nothing of how to score the model"
        )
    return shape, size


def _check_fits(model: torch.nn.Module, data: Data, shape: list[int] | None) -> None:
    if shape is not None and list(shape) != list(data.input_shape):
        raise CannotEvaluate(
            f"the model takes inputs of shape {list(shape)}, the data has {list(data.input_shape)}; write another data="
        )
    with torch.inference_mode():
        num_classes = logits_of(next(iter(data.test.batches(1))).call(model)).shape[-1]
    if data.num_classes and num_classes != data.num_classes:
        raise CannotEvaluate(
            f"the model knows {num_classes} classes, the data has {data.num_classes}; write another data="
        )
