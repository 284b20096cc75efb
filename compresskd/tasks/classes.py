"""One class of several: of samples (images, texts), or of the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskd.metric import ACCURACY, MACRO_F1, MATTHEWS, Metric
from compresskd.tasks.base import CLASSES, Judged, Task, by_sample
from compresskd.tasks.batch import Batch, logits_of
from compresskd.tasks.outputs import ModelOutputs

IGNORED = -100  # the class of a position that is no row, as everywhere in PyTorch
PROBABILITIES_WITHIN = 1e-3  # of 1 is the sum of those of one sample
UNLABELLED = -1  # the class of a row without a label; a number without one is NaN


@dataclass(frozen=True)
class Classification(Task):
    """One class a sample: cross-entropy, accuracy, macro-F1 and Matthews' correlation.

    Targets [S, K] of floats are soft labels: probabilities of the classes. A model is judged by the most probable one.
    """

    name: ClassVar[str] = "classification"
    asks: ClassVar[str] = CLASSES
    targets_are: ClassVar[str] = "one class a sample"
    score_is: ClassVar[str] = "correct predictions"
    monitor: ClassVar[Metric] = ACCURACY
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, MACRO_F1, MATTHEWS)
    running: ClassVar[Metric | None] = ACCURACY

    def label_losses(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy in nats, [N]; targets [N] int64, or probabilities [N, K]."""
        return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)

    def label_loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor:
        """The mean over rows; without weights by PyTorch's own reduction, whose order of sums it is."""
        if weights is None:
            return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        return super().label_loss(logits, targets, smoothing=smoothing, weights=weights)

    def label_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over rows, in PyTorch's own order."""
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[N] int64, the most probable class."""
        return logits.argmax(dim=1)

    def running_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How many rows are right; of targets [N, K] the heaviest class counts."""
        return (logits.argmax(dim=1) == self.judged_by(targets)).sum()

    def judged_by(self, targets: Tensor) -> Tensor:
        """[N] int64, of probabilities the most probable class."""
        return class_indices(targets)

    def metrics_of(self, judged: Judged) -> dict[str, float]:
        """Accuracy; the mean of the classes' F1; Matthews' correlation for K classes (Gorodkin 2004, eq. 8)."""
        right, predicted, true = counts(judged.predictions, judged.targets)
        return {
            ACCURACY.name: right.sum().item() / max(1, len(judged.targets)),
            MACRO_F1.name: macro_f1(right, predicted, true),
            MATTHEWS.name: matthews(right, predicted, true),
        }

    def scores(self, judged: Judged) -> Tensor:
        """[S] the share of a sample's rows that are right."""
        right = judged.predictions == judged.targets
        return by_sample(right, judged.sample, judged.num_samples)

    def agreement(self, student: Tensor, teacher: Tensor) -> float | None:
        """The share of rows of which both predict one class."""
        return float((student == teacher).double().mean())

    def faults(self, targets: Tensor, num_outputs: int) -> str | None:
        """Targets are whole numbers [S], classes from 0, or a probability for each class."""
        if targets.is_floating_point() and list(targets.shape[1:]) == [num_outputs] and num_outputs > 1:
            bad = (targets < 0).any(dim=1) | ((targets.sum(dim=1) - 1).abs() > PROBABILITIES_WITHIN)
            return "numbers that are no probabilities of classes" if bool(bad.any()) else None
        if targets.is_floating_point() or targets.ndim != 1:
            kind = "numbers" if targets.is_floating_point() else "classes"
            return f"{kind} of shape [{', '.join(['S', *map(str, targets.shape[1:])])}]"
        return None


@dataclass(frozen=True)
class TextClassification(Classification):
    """One class a text."""

    name: ClassVar[str] = "text_classification"


@dataclass(frozen=True)
class TokenClassification(Classification):
    """One class a token that has a label; -100 marks those that have none: padding, and later pieces of a word."""

    name: ClassVar[str] = "token_classification"
    targets_are: ClassVar[str] = "one class a token"
    score_is: ClassVar[str] = "the share of tokens that are right"

    @property
    def rows_are_samples(self) -> bool:
        """A sample has as many rows as labelled tokens."""
        return False

    def num_rows(self, batch: Batch) -> int:
        """Tokens that have a label."""
        return int((batch.targets != IGNORED).sum())

    def rows(self, output: Any, batch: Batch) -> tuple[ModelOutputs, Tensor]:
        """The labelled tokens of logits [B, L, K], in the order of the batch."""
        return token_rows(self, logits_of(output), batch.targets, batch)

    def faults(self, targets: Tensor, num_outputs: int) -> str | None:
        """Targets are whole numbers, several to a sample."""
        if targets.is_floating_point():
            return "numbers"
        return None if targets.ndim > 1 else "one class a sample"

    def output_fault(self, output: Any, batch: Batch, num_outputs: int) -> str | None:
        """Logits are [B, L, K]."""
        return sequence_fault(output, batch, num_outputs)


def class_indices(targets: Tensor) -> Tensor:
    """Hard labels [N]: int64 targets as they are, of probabilities [N, K] the most probable class."""
    return targets.argmax(dim=-1) if targets.is_floating_point() else targets


def token_rows(task: Task, logits: Tensor, targets: Tensor, batch: Batch) -> tuple[ModelOutputs, Tensor]:
    """Rows of logits [B, L, K] where targets [B, L] are not IGNORED."""
    counted = targets != IGNORED
    sample = counted.nonzero()[:, 0]
    weights = batch.weights
    if weights is not None:
        weights = weights[sample] if weights.ndim == 1 else weights[counted]
    outputs = ModelOutputs(logits[counted], mask=batch.mask, sample=sample, weights=weights, task=task)
    return outputs, targets[counted]


def sequence_fault(output: Any, batch: Batch, num_outputs: int) -> str | None:
    """What is wrong with logits that are to be [B, L, K]."""
    shape, wanted = list(logits_of(output).shape), [*batch.targets.shape, num_outputs]
    return None if shape == wanted else f"logits {wanted}, one row a token"


def counts(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[K] float64 each: how often a class is right, predicted, and true; no matrix [K, K], which may not fit."""
    size = int(torch.maximum(predictions.max(), targets.max())) + 1 if len(targets) else 1
    parts = targets[predictions == targets], predictions, targets
    right, predicted, true = (torch.bincount(part, minlength=size).double() for part in parts)
    return right, predicted, true


def macro_f1(right: Tensor, predicted: Tensor, true: Tensor) -> float:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur among targets or predictions."""
    present = predicted + true
    occurring = present > 0
    return float((2 * right[occurring] / present[occurring]).mean()) if bool(occurring.any()) else 0.0


def matthews(right: Tensor, predicted: Tensor, true: Tensor) -> float:
    """Correlation of predictions and targets, 0 where either is constant."""
    total = true.sum()
    covariance = right.sum() * total - predicted @ true
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return float(covariance / spread.sqrt()) if spread > 0 else 0.0
