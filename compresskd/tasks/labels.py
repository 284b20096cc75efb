"""Several independent labels a sample, each there or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskd.metric import ACCURACY, MACRO_F1, MICRO_F1, Metric
from compresskd.tasks.base import LABELS, Judged, Task


@dataclass(frozen=True)
class MultiLabel(Task):
    """Targets [S, K] of 0 and 1 (or shares between): binary cross-entropy, macro- and micro-F1, exact matches.

    A label is predicted where its logit is above 0. `accuracy` is the share of samples all of whose labels are right.
    """

    name: ClassVar[str] = "multi_label"
    asks: ClassVar[str] = LABELS
    targets_are: ClassVar[str] = "0 or 1 for each label of a sample"
    score_is: ClassVar[str] = "the share of labels that are right"
    monitor: ClassVar[Metric] = MACRO_F1
    metrics: ClassVar[tuple[Metric, ...]] = (MACRO_F1, MICRO_F1, ACCURACY)
    running: ClassVar[Metric | None] = ACCURACY

    def label_losses(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """[N] the mean over labels of the binary cross-entropy, in nats."""
        smoothed = targets.float() * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), smoothed, reduction="none").mean(dim=1)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[N, K] uint8, the labels whose logit is above 0."""
        return (logits > 0).to(torch.uint8)

    def running_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How many samples have all labels right."""
        return ((logits > 0) == (targets > 0.5)).all(dim=1).sum()

    def metrics_of(self, judged: Judged) -> dict[str, float]:
        """F1 of each label, averaged; F1 of all labels together; exact matches; without labels that never occur."""
        found, there = judged.predictions.bool(), judged.targets > 0.5
        right = (found & there).sum(dim=0).double()
        both = found.sum(dim=0).double() + there.sum(dim=0).double()
        occurring = both > 0
        macro = (2 * right[occurring] / both[occurring]).mean() if bool(occurring.any()) else torch.zeros(())
        return {
            MACRO_F1.name: float(macro),
            MICRO_F1.name: float(2 * right.sum() / both.sum()) if both.sum() > 0 else 0.0,
            ACCURACY.name: float((found == there).all(dim=1).double().mean()),
        }

    def scores(self, judged: Judged) -> Tensor:
        """[S] the share of labels that are right."""
        return (judged.predictions.bool() == (judged.targets > 0.5)).float().mean(dim=1)

    def agreement(self, student: Tensor, teacher: Tensor) -> float | None:
        """The share of labels of which both say the same."""
        return float((student == teacher).double().mean())

    def faults(self, targets: Tensor, num_outputs: int) -> str | None:
        """Targets are [S, K] within 0..1."""
        if targets.ndim != 2:
            return "one class a sample" if not targets.is_floating_point() else "one number a sample"
        if bool(((targets < 0) | (targets > 1)).any()):
            return "numbers outside of 0..1"
        return None
