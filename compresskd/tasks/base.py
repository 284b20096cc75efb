"""What a task is: how a model's output becomes rows, what the labels ask, and how predictions are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compresskd.metric import Metric
from compresskd.tasks.batch import Batch, Model, logits_of
from compresskd.tasks.outputs import ModelOutputs

CLASSES, LABELS, VALUES, VECTORS = "classes", "labels", "values", "vectors"


@dataclass(frozen=True)
class Judged:
    """Predictions of a split of S samples, N rows, on the CPU, in the order of the split.

    Attributes:
        predictions: [N, ...] what `Task.keep` kept of each row.
        targets: [N, ...] of the rows.
        losses: [N] float32, the label loss of each row; of a task that needs them, else empty.
        sample: [N] int64, the sample of a row; None where rows are the samples.
        num_samples: S.
        loss: mean of the label loss over the rows, or their weighted mean.
        num_bytes: of the text that the rows are tokens of; None where they are of no text.
    """

    predictions: Tensor
    targets: Tensor
    losses: Tensor
    sample: Tensor | None
    num_samples: int
    loss: float
    num_bytes: int | None = None


class Task(ABC):
    """What a model is asked and how it is judged; a frozen dataclass without state.

    Attributes:
        name: as users write it, `task=NAME`.
        asks: what a row is asked for: one of several "classes", several independent "labels", "values", or a vector
            ("vectors"). Terms of an objective say which they fit.
        targets_are: in words, the targets that data must have.
        monitor: the metric that selects the best epoch.
        metrics: all of them besides the loss.
        running: the metric that is followed over the training batches; None follows the loss alone.
        score_is: in words, what the score of a sample is.
        keeps_targets: whether targets of rows are worth keeping in a run's predictions.npz.
        keeps_predictions: whether the predictions are, too.
        targets_of_teacher: whether targets are what the teacher says, so that there must be one.
        keeps_losses: whether `metrics_of` and `scores` need the loss of each row.
    """

    name: ClassVar[str]
    asks: ClassVar[str]
    targets_are: ClassVar[str]
    monitor: ClassVar[Metric]
    metrics: ClassVar[tuple[Metric, ...]]
    running: ClassVar[Metric | None] = None
    score_is: ClassVar[str]
    keeps_targets: ClassVar[bool] = True
    keeps_predictions: ClassVar[bool] = True
    targets_of_teacher: ClassVar[bool] = False
    keeps_losses: ClassVar[bool] = False

    def rows(self, output: Any, batch: Batch) -> tuple[ModelOutputs, Tensor]:
        """The rows that count of what a model returned for `batch`, and their targets [N, ...]."""
        outputs = ModelOutputs(logits_of(output), mask=batch.mask, weights=batch.weights, task=self)
        return outputs, batch.targets

    @property
    def rows_are_samples(self) -> bool:
        """Whether a sample is one row, so that rows can be found by the position of the sample."""
        return True

    def num_rows(self, batch: Batch) -> int:
        """How many rows a batch has, before any model is called."""
        return len(batch)

    @abstractmethod
    def label_losses(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """[N] float32: what the labels ask, of each row. `smoothing` of the labels, where they are classes."""

    def label_loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor:
        """The mean of `label_losses`, weighted where there are weights [N]."""
        losses = self.label_losses(logits, targets, smoothing=smoothing)
        if weights is None:
            return losses.mean()
        return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)

    def label_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum of `label_losses`, a scalar."""
        return self.label_losses(logits, targets).sum()

    @abstractmethod
    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[N, ...] the predictions of rows, as small as `metrics_of` can do with."""

    def judged_by(self, targets: Tensor) -> Tensor:
        """[N, ...] what predictions of rows are compared with: their targets, or what these say most of all."""
        return targets

    @abstractmethod
    def metrics_of(self, judged: Judged) -> dict[str, float]:
        """Every metric by name."""

    @abstractmethod
    def scores(self, judged: Judged) -> Tensor:
        """[S] float32, one score a sample, higher is better; for paired tests between models."""

    def running_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The running metric's sum over rows, a scalar on the device."""
        raise NotImplementedError(f"{self.name} follows no metric over training batches")

    def faults(self, targets: Tensor, num_outputs: int) -> str | None:
        """Why targets [S, ...] are none of this task; None where they are."""
        del targets, num_outputs
        return None

    def output_fault(self, output: Any, batch: Batch, num_outputs: int) -> str | None:
        """What is wrong with what a model returned, in place of what the task needs; None where it fits."""
        logits = logits_of(output)
        wanted = [len(batch), num_outputs]
        return None if list(logits.shape) == wanted else f"logits {wanted} for {len(batch)} samples"

    def model_fault(self, model: Model, batch: Batch) -> str | None:
        """What is wrong with how a model comes to outputs of the right shape; None where nothing is."""
        del model, batch
        return None

    def agreement(self, student: Tensor, teacher: Tensor) -> float | None:
        """The share of rows of which two models predict the same; None where predictions are no classes."""
        del student, teacher
        return None

    def describe(self) -> dict[str, Any]:
        """For the record: the name, the metric that selects, and the direction of each."""
        return {
            "name": self.name,
            "monitor": self.monitor.name,
            "score": self.score_is,
            "metrics": {
                m.name: {"higher_is_better": m.higher_is_better, "percent": m.percent} for m in self.metrics
            },
        }


def by_sample(values: Tensor, sample: Tensor | None, num_samples: int) -> Tensor:
    """[S] the mean over the rows of each sample of values [N]; a sample without rows has 0."""
    if sample is None:
        return values.float()
    total = torch.zeros(num_samples).index_add_(0, sample, values.float())
    count = torch.zeros(num_samples).index_add_(0, sample, torch.ones_like(values, dtype=torch.float32))
    return total / count.clamp_min(1)
