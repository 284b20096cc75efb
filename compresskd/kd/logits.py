"""Terms on logits. Every one computes in float32, whatever the dtype of the logits it is given.

Shapes: N rows (samples, or tokens of them), K classes; logits ``[N, K]``; targets int64 ``[N]``, or (mixup)
probabilities ``[N, K]``.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor

from compresskd.kd.divergence import divergence, divergence_between, jensen_shannon
from compresskd.kd.outputs import teacher_of
from compresskd.kd.packed import softened_pair
from compresskd.options import checked
from compresskd.tasks import CLASSES, LABELS, Classification, ModelOutputs

# Above 1e6 the softened classes differ by less than float32 resolves, below 1e-3 logits of usual size overflow.
Temperature = Annotated[float, Ge(1e-3), Le(1e6)]


def standardized(logits: Tensor) -> Tensor:
    """Z-score of each sample's logits: mean 0, standard deviation 1 over the classes.

    Logit Standardization in Knowledge Distillation (Sun et al. 2024, arXiv:2403.01427), Algorithm 1. The
    divisor is the unbiased standard deviation, guarded by 1e-7 against constant logits.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (logits.std(dim=-1, keepdim=True) + 1e-7)


def logit_pair(
    student: ModelOutputs, teacher: ModelOutputs, standardize: bool, *, least: int = 2
) -> tuple[Tensor, Tensor]:
    """Logits of both in float32, standardized if asked; no gradient flows into the teacher's.

    Raises:
        ValueError: the two differ in shape, or have fewer than `least` outputs: among the classes of a softmax, one
            alone leaves nothing to be told apart.
    """
    s, t = student.logits.float(), teacher.logits.detach().float()
    if s.shape != t.shape or s.shape[-1] < least:
        raise ValueError(
            f"expected logits of one shape and of {least} or more, got "
            f"{list(s.shape)} from the student, {list(t.shape)} from the teacher"
        )
    return (standardized(s), standardized(t)) if standardize else (s, t)


@checked
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the ground truth, the only term here that needs no teacher: the label loss of the task.

    Of one class of several it is that of the softmax, of independent labels that of each label's Bernoulli, and of
    values that of a Gaussian of fixed width, which is the squared error. Of classes, targets may be probabilities.
    ``label_smoothing`` is that of Szegedy et al. 2016, arXiv:1512.00567, section 7; values have none.

    Raises:
        OptionError: if ``label_smoothing`` is not in [0, 1).
    """

    weight: float = 1.0
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    kind: ClassVar[str] = "targets"

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        task = student.task or Classification()
        return task.label_loss(
            student.logits.float(), targets, smoothing=self.label_smoothing, weights=student.weights
        )


@checked
@dataclass(frozen=True)
class SoftTargets:
    """``T^2 KL(softmax(t / T) || softmax(s / T))``, mean over the batch.

    Distilling the Knowledge in a Neural Network (Hinton et al. 2015, arXiv:1503.02531), equations 1 to 4.
    The gradient with respect to the student's logits is ``T / B (softmax(s / T) - softmax(t / T))``:
    ``T^2`` keeps its size comparable over temperatures. The paper leaves T open; 4 is what its followers
    settled on for CIFAR (Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 4.1).

    Raises:
        OptionError: if ``temperature`` is not within 0.001 to 1e6 (1 to 20 is usual).
    """

    weight: float = 1.0
    temperature: Temperature = 4.0
    standardize: bool = False
    kind: ClassVar[str] = "logits"
    fits: ClassVar[tuple[str, ...]] = (CLASSES,)

    @property
    def takes_packed(self) -> bool:
        """Whether the k largest of the teacher's outputs do: then the divergence is that of k + 1 outcomes."""
        return not self.standardize

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        theirs = teacher_of(teacher, self)
        if theirs.top is not None and self.takes_packed:
            kl, _ = divergence(*softened_pair(student.logits, theirs.top, self.temperature))
            return kl.mean() * self.temperature**2
        s, t = logit_pair(student, theirs, self.standardize)
        kl, _ = divergence_between(t, s, self.temperature)
        return kl.mean() * self.temperature**2


@checked
@dataclass(frozen=True)
class ReverseKL:
    """``T^2 KL(softmax(s / T) || softmax(t / T))``, mean over the rows: soft targets the other way round.

    It lets the student leave out what it cannot say, where soft targets make it cover all that the teacher may say:
    MiniLLM (Gu et al. 2023, arXiv:2306.08543), section 2.1, token by token as in On-Policy Distillation of Language
    Models (Agarwal et al. 2023, arXiv:2306.13649), section 3, on the given text. Both take T 1.

    Raises:
        OptionError: if ``temperature`` is not within 0.001 to 1e6.
    """

    weight: float = 1.0
    temperature: Temperature = 1.0
    standardize: bool = False
    kind: ClassVar[str] = "logits"
    fits: ClassVar[tuple[str, ...]] = (CLASSES,)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        s, t = logit_pair(student, teacher_of(teacher, self), self.standardize)
        kl, _ = divergence_between(s, t, self.temperature)
        return kl.mean() * self.temperature**2


@checked
@dataclass(frozen=True)
class JensenShannon:
    """``T^2 (beta KL(p || m) + (1 - beta) KL(q || m))`` with ``m = beta p + (1 - beta) q``, mean over the rows.

    ``p`` is the teacher's softmax at T, ``q`` the student's. The generalized divergence of On-Policy Distillation of
    Language Models (Agarwal et al. 2023, arXiv:2306.13649), equation 1; ``beta`` 0.5 is that of Jensen and Shannon,
    which is bounded by log 2, so that no row outweighs the others. Divided by ``beta``, it comes to soft targets as
    ``beta`` goes to 0; divided by ``1 - beta``, to the reverse divergence as it goes to 1.

    Raises:
        OptionError: if ``temperature`` is not within 0.001 to 1e6, or ``beta`` not within 0.001 to 0.999.
    """

    weight: float = 1.0
    temperature: Temperature = 1.0
    beta: Annotated[float, Ge(0.001), Le(0.999)] = 0.5
    standardize: bool = False
    kind: ClassVar[str] = "logits"
    fits: ClassVar[tuple[str, ...]] = (CLASSES,)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        s, t = logit_pair(student, teacher_of(teacher, self), self.standardize)
        return jensen_shannon(t, s, self.temperature, self.beta).mean() * self.temperature**2


@checked
@dataclass(frozen=True)
class LogitMSE:
    """Mean squared difference of the logits, over batch and classes.

    Do Deep Nets Really Need to be Deep? (Ba & Caruana 2014, arXiv:1312.6184), equation 1, as a mean. It is
    twice the limit of ``SoftTargets`` at a high temperature, for logits of mean 0 (Hinton et al. 2015,
    arXiv:1503.02531, equation 4; Kim et al. 2021, arXiv:2105.08919).
    """

    weight: float = 1.0
    standardize: bool = False
    kind: ClassVar[str] = "logits"

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        least = 2 if self.standardize else 1
        s, t = logit_pair(student, teacher_of(teacher, self), self.standardize, least=least)
        return F.mse_loss(s, t)


@checked
@dataclass(frozen=True)
class BernoulliTargets:
    """``T^2`` times the mean over labels of ``KL(Bernoulli(sigmoid(t / T)) || Bernoulli(sigmoid(s / T)))``.

    Soft targets (Hinton et al. 2015, arXiv:1503.02531) for labels that are independent of each other, each a
    distribution of its own: the binary form of Yang et al. 2023, arXiv:2308.06453, equation 4, at a temperature.

    Raises:
        OptionError: if ``temperature`` is not within 0.001 to 1e6.
    """

    weight: float = 1.0
    temperature: Temperature = 4.0
    kind: ClassVar[str] = "logits"
    fits: ClassVar[tuple[str, ...]] = (LABELS,)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        s, t = logit_pair(student, teacher_of(teacher, self), standardize=False, least=1)
        zero = torch.zeros_like(t)
        # a Bernoulli is a softmax of two logits, 0 and its own
        theirs, ours = (torch.stack([each, zero], dim=-1) for each in (t, s))
        kl, _ = divergence_between(theirs, ours, self.temperature)
        return kl.mean() * self.temperature**2
