"""Score a finished run's model again, and say whether the recorded figure is reproduced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compresskd import artifact, tt
from compresskd.data.base import Data
from compresskd.run import FINISHED, Record, RunDirectoryError
from compresskd.training import evaluate

_FEW = 10  # samples; below, every one has to be judged alike


class CannotEvaluate(RunDirectoryError):
    """The run has no finished model, or the data does not fit it."""


@dataclass(frozen=True)
class Verdict:
    """A model scored again.

    Attributes:
        stage: whose model it is.
        accuracy: fraction of the test split that is right.
        recorded: the fraction in the record, or None where the data is other than the run's.
        num_samples: in the test split.
    """

    stage: str
    accuracy: float
    recorded: float | None
    num_samples: int

    @property
    def reproduced(self) -> bool | None:
        """Whether no more than one sample in 1,000 (or one of ten and more) is judged otherwise; None on other data.

        Other hardware and other thread numbers add in another order, which can tip a sample at the border.
        """
        if self.recorded is None:
            return None
        allowed = max(1.0 if self.num_samples >= _FEW else 0.0, self.num_samples / 1000)
        differing = abs(self.accuracy - self.recorded) * self.num_samples
        return self.num_samples > 0 and differing <= allowed + 1e-6

    def __str__(self) -> str:
        scored = f"{self.stage}: test accuracy {100 * self.accuracy:.2f}% of {self.num_samples:,} samples"
        if self.recorded is None:
            return f"{scored} (other data than the run's: nothing to reproduce)"
        verdict = "reproduced" if self.reproduced else "NOT reproduced"
        return f"{scored}; recorded {100 * self.recorded:.2f}%: {verdict}"


def evaluate_run(
    directory: Path, record: Record, data: Data, *, stage: str | None = None, trust: tuple[str, ...] = ()
) -> Verdict:
    """Load the model of a stage (the final one where none is named) and score it on the test split of `data`.

    Raises:
        CannotEvaluate: no such stage has finished, or the data has other classes or another shape.
        artifact.ArtifactError: the model's files are damaged.
    """
    entry = _entry(directory, record, stage)
    model = artifact.load(directory / entry["checkpoint"], trust=trust)
    config = record.config
    _check_fits(model, data, config)
    with tt.plans(config.get("tt", {}).get("plan", tt.FIXED)):
        scores = evaluate(model, data.test, batch_size=config["train"]["evaluation_batch_size"])
    if not math.isfinite(scores.loss):
        raise CannotEvaluate(
            f"{directory}: the model of stage '{entry['name']}' answers NaN or infinity on the test split (mean loss "
            f"{scores.loss}): its accuracy means nothing"
        )
    same = data.test.fingerprint == record.data.get("test_fingerprint")
    names = record.data.get("class_names")
    same = same and names in (None, [str(name) for name in data.class_names])  # version 0.1 kept no names
    recorded = entry["metrics"].get("test_accuracy")
    if recorded is None:
        raise CannotEvaluate(f"{directory}: record.json has no test_accuracy for stage '{entry['name']}'")
    recorded = recorded if same else None
    return Verdict(entry["name"], scores.accuracy, recorded, len(data.test))


def _entry(directory: Path, record: Record, stage: str | None) -> Mapping[str, Any]:
    """What the record says of the stage to score."""
    finished = ", ".join(s["name"] for s in record.stages) or "none"
    if stage is None and record.status != FINISHED:
        raise CannotEvaluate(
            f"{directory} is not finished (it is {record.status}); go on with it by: compresskd resume {directory}, "
            f"or name a finished stage; finished are: {finished}"
        )
    entry = record.stage(stage or record.final)
    if entry is None:
        raise CannotEvaluate(
            f"{directory} has no finished stage '{stage or record.final}'; finished are: {finished}"
        )
    return entry


def _check_fits(model: torch.nn.Module, data: Data, config: Mapping[str, Any]) -> None:
    shape = config["data"].get("input_shape")
    if shape is not None and list(shape) != list(data.input_shape):
        raise CannotEvaluate(
            f"the model takes inputs of shape {list(shape)}, the data has {list(data.input_shape)}; write another data="
        )
    with torch.inference_mode():
        num_classes = model(next(iter(data.test.batches(1))).inputs).shape[-1]
    if num_classes != data.num_classes:
        raise CannotEvaluate(
            f"the model knows {num_classes} classes, the data has {data.num_classes}; write another data="
        )
