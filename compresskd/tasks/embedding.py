"""Vectors: a point for each sample, where a teacher has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskd.metric import COSINE, PEARSON, SPEARMAN, Metric
from compresskd.tasks.base import VECTORS, Judged, Task
from compresskd.tasks.batch import Batch, logits_of

_MOST_IN_PAIRS = 2000  # samples whose mutual cosines are compared


@dataclass(frozen=True)
class Embedding(Task):
    """A vector a sample, judged by the teacher's: targets [S, D] are these, and data need no labels.

    `cosine` is the mean cosine to the teacher's vector; `spearman` and `pearson` are the correlations over all pairs of
    samples, 2,000 of them at most, evenly spread, between the two models' cosines of a pair: whether the same samples
    are near each other, however the space is turned.
    """

    name: ClassVar[str] = "embedding"
    asks: ClassVar[str] = VECTORS
    targets_are: ClassVar[str] = "nothing"
    score_is: ClassVar[str] = "the cosine to the teacher's vector"
    monitor: ClassVar[Metric] = COSINE
    metrics: ClassVar[tuple[Metric, ...]] = (COSINE, SPEARMAN, PEARSON)
    keeps_predictions: ClassVar[bool] = False
    targets_of_teacher: ClassVar[bool] = True

    def label_losses(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """[N] one less the cosine to the teacher's vector."""
        return 1 - F.cosine_similarity(logits.float(), targets.float(), dim=1)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[N, D] the vectors."""
        return logits.float()

    def metrics_of(self, judged: Judged) -> dict[str, float]:
        """The mean cosine, and how alike the relations of the samples are."""
        few = torch.linspace(0, len(judged.targets) - 1, min(len(judged.targets), _MOST_IN_PAIRS)).long()
        ours, theirs = (_relations(vectors[few]) for vectors in (judged.predictions, judged.targets))
        return {
            COSINE.name: float(self.scores(judged).double().mean()),
            SPEARMAN.name: _correlation(_ranks(ours), _ranks(theirs)),
            PEARSON.name: _correlation(ours, theirs),
        }

    def scores(self, judged: Judged) -> Tensor:
        """[S] the cosine to the teacher's vector."""
        return 1 - self.label_losses(judged.predictions, judged.targets)

    def output_fault(self, output: Any, batch: Batch, num_outputs: int) -> str | None:
        """Vectors are [B, D] of any D: which it is, the teacher says."""
        vectors = logits_of(output)
        fits = vectors.ndim == 2 and len(vectors) == len(batch)
        return None if fits else f"a vector for each of {len(batch)} samples"


def _relations(vectors: Tensor) -> Tensor:
    """[S (S - 1) / 2] float64 cosines of all pairs."""
    unit = F.normalize(vectors.double(), dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit @ unit.T)[rows, columns]


def _ranks(values: Tensor) -> Tensor:
    """[N] float64, the mean rank among equals."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, 0 where either never changes."""
    if not len(a):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / scale) if scale > 0 else 0.0
