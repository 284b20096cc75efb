"""A term that asks for correlation with the teacher, not for equality."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compresskd.kd.logits import Temperature, logit_pair
from compresskd.kd.outputs import teacher_of
from compresskd.kd.shares import BATCH
from compresskd.options import NonNegative, checked
from compresskd.tasks import CLASSES, ModelOutputs

_EPSILON = 1e-8
_NEARLY_UNIFORM = 0.5  # the widest range of logits


@checked
@dataclass(frozen=True)
class DIST:
    """``T^2 (beta inter + gamma intra)``, Pearson distances between the softened predictions of both models.

    Knowledge Distillation from A Stronger Teacher (Huang et al. 2022, arXiv:2205.10536), section 3: the
    inter-class relation compares each sample's probabilities over the classes, the intra-class relation
    each class's over the batch. ``T^2`` is from the published code. Defaults are those of the published
    CIFAR-100 code: 2, 2, T 4. From that code, too, is the 1e-8 that is added to the product of the norms:
    it counts where probabilities hardly vary, a temperature far from 1, and keeps equal predictions from
    being quite at distance 0 there.

    Raises:
        OptionError: if ``temperature`` is out of its range, or a factor is below 0.
    """

    weight: float = 1.0
    temperature: Temperature = 4.0
    beta: NonNegative = 2.0
    gamma: NonNegative = 2.0
    standardize: bool = False
    kind: ClassVar[str] = "logits"
    mean_over: ClassVar[str] = BATCH
    fits: ClassVar[tuple[str, ...]] = (CLASSES,)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        s, t = logit_pair(student, teacher_of(teacher, self), self.standardize)
        p, q = _probabilities(s / self.temperature), _probabilities(t / self.temperature)
        inter, intra = _pearson_distance(p, q), _pearson_distance(p.T, q.T)
        return (self.beta * inter + self.gamma * intra) * self.temperature**2


def _probabilities(logits: Tensor) -> Tensor:
    """The softmax ``[B, K]``; less ``1 / K`` where all of it is nearly uniform, and would be rounded to that.

    Only what differs over classes and over samples enters the correlations.
    """
    below = logits - logits.amax(dim=-1, keepdim=True)
    weight = torch.expm1(below)
    deviation = (weight - weight.mean(dim=-1, keepdim=True)) / (1 + weight).sum(dim=-1, keepdim=True)
    return torch.where(below.amin() > -_NEARLY_UNIFORM, deviation, logits.softmax(dim=-1))


def _pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """``1 - correlation`` of each row of ``a`` and ``b`` ``[M, N]``, mean over the rows."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    correlation = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + _EPSILON)
    return 1 - correlation.mean()
