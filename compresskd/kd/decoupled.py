"""Terms that treat the target class and the others apart. Shapes as in :mod:`compresskd.kd.logits`.

Both need the class of each sample: of probability targets (mixup) the most probable class is taken, as the
published code of NKD does.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskd.kd.divergence import divergence
from compresskd.kd.logits import Temperature, logit_pair
from compresskd.kd.outputs import teacher_of
from compresskd.options import NonNegative, checked
from compresskd.tasks import CLASSES, ModelOutputs, class_indices


@checked
@dataclass(frozen=True)
class DKD:
    """``T^2 (target_weight TCKD + non_target_weight NCKD)``, mean over the batch.

    Decoupled Knowledge Distillation (Zhao et al. 2022, arXiv:2203.08679), equation 7, with alpha and beta
    written out as ``target_weight`` and ``non_target_weight``. TCKD is the divergence between the two-way
    distributions (target class, all others), NCKD that between the distributions over the other classes
    alone. Soft targets are the special case ``target_weight`` 1, ``non_target_weight`` 1 - p(target |
    teacher) (equation 5). Defaults are the paper's for CIFAR-100: 1, 8, T 4. The 20 epochs over which its
    code raises the term's weight are left out.

    Raises:
        OptionError: if ``temperature`` is out of its range, or a weight is below 0.
    """

    weight: float = 1.0
    temperature: Temperature = 4.0
    target_weight: NonNegative = 1.0
    non_target_weight: NonNegative = 8.0
    standardize: bool = False
    kind: ClassVar[str] = "logits"
    fits: ClassVar[tuple[str, ...]] = (CLASSES,)
    needs_labels: ClassVar[bool] = True

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        s, t = logit_pair(student, teacher_of(teacher, self), self.standardize)
        classes = class_indices(targets)[:, None]
        t, difference = t / self.temperature, (s - t) / self.temperature
        t_others = _others(t, classes)
        nckd, mean = divergence(t_others, _others(difference, classes))
        # The logarithm of the others' sum, and how far the student's is from the teacher's.
        t_binary = torch.cat([t.gather(1, classes), t_others.logsumexp(dim=-1, keepdim=True)], dim=1)
        tckd, _ = divergence(
            t_binary, torch.cat([difference.gather(1, classes), (mean + nckd)[:, None]], dim=1)
        )
        return (self.target_weight * tckd + self.non_target_weight * nckd).mean() * self.temperature**2


@checked
@dataclass(frozen=True)
class NKD:
    """``-t_c log s_c - gamma T^2 sum_i N(t_i) log N(s_i)`` over the classes i other than c.

    From Knowledge Distillation to Self-Knowledge Distillation (Yang et al. 2023, arXiv:2303.13005), the
    normalized KD loss of section 3.1: c is the target class, at temperature 1; N makes the other classes, at
    temperature T, sum to 1. Mean over the batch. Defaults are the paper's for ImageNet: gamma 1.5, T 1. It
    is a cross-entropy, so not 0 on equal logits.

    Raises:
        OptionError: if ``temperature`` is out of its range, or ``gamma`` is below 0.
    """

    weight: float = 1.0
    temperature: Temperature = 1.0
    gamma: NonNegative = 1.5
    standardize: bool = False
    kind: ClassVar[str] = "logits"
    fits: ClassVar[tuple[str, ...]] = (CLASSES,)
    needs_labels: ClassVar[bool] = True

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        s, t = logit_pair(student, teacher_of(teacher, self), self.standardize)
        classes = class_indices(targets)[:, None]
        target = t.softmax(dim=-1).gather(1, classes) * F.log_softmax(s, dim=-1).gather(1, classes)
        t_others = _others(t, classes) / self.temperature
        # The cross-entropy of the others as entropy and divergence: the gradient is that of the divergence alone.
        kl, _ = divergence(t_others, _others(s - t, classes) / self.temperature)
        entropy = -(F.softmax(t_others, dim=-1) * F.log_softmax(t_others, dim=-1)).sum(dim=-1)
        return self.gamma * self.temperature**2 * (kl + entropy).mean() - target.mean()


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    """``[B, K - 1]``: the logits without those of ``classes`` ``[B, 1]``."""
    # By index: selecting by a mask makes the host wait for the device.
    index = torch.arange(logits.shape[1] - 1, device=logits.device).expand(logits.shape[0], -1)
    return logits.gather(1, index + (index >= classes))
