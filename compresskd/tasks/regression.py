"""Numbers: one or several values a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from compresskd.metric import MAE, MSE, PEARSON, R2, Metric
from compresskd.tasks.base import VALUES, Judged, Task


@dataclass(frozen=True)
class Regression(Task):
    """Targets [S, D]: squared error; MSE, MAE, R2 and Pearson's correlation, each the mean over the D values.

    Data standardize their targets on the training split, so MSE is in units of its variance.
    """

    name: ClassVar[str] = "regression"
    asks: ClassVar[str] = VALUES
    targets_are: ClassVar[str] = "numbers"
    score_is: ClassVar[str] = "the negative squared error"
    monitor: ClassVar[Metric] = R2
    metrics: ClassVar[tuple[Metric, ...]] = (R2, MSE, MAE, PEARSON)
    running: ClassVar[Metric | None] = MSE

    def label_losses(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """[N] the mean over values of the squared error."""
        return F.mse_loss(logits.float(), targets.float(), reduction="none").mean(dim=1)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[N, D] the predicted values."""
        return logits.float()

    def running_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The squared error summed over rows."""
        return F.mse_loss(logits.float(), targets.float(), reduction="none").mean(dim=1).sum()

    def metrics_of(self, judged: Judged) -> dict[str, float]:
        """R2 = 1 - SSE / SST and Pearson's r of a constant are 0."""
        predicted, true = judged.predictions.double(), judged.targets.double()
        error = predicted - true
        p, t = predicted - predicted.mean(dim=0), true - true.mean(dim=0)
        spread = t.square().sum(dim=0)
        explained = 1 - error.square().sum(dim=0) / spread
        scale = (p.square().sum(dim=0) * spread).sqrt()
        return {
            R2.name: float(explained.where(spread > 0, 0.0).mean()),
            MSE.name: float(error.square().mean()),
            MAE.name: float(error.abs().mean()),
            PEARSON.name: float(((p * t).sum(dim=0) / scale).where(scale > 0, 0.0).mean()),
        }

    def scores(self, judged: Judged) -> Tensor:
        """[S] the negative squared error."""
        return -(judged.predictions - judged.targets.float()).square().mean(dim=1)

    def faults(self, targets: Tensor, num_outputs: int) -> str | None:
        """Targets are floating-point numbers [S, D]."""
        return None if targets.is_floating_point() and targets.ndim == 2 else "classes"
