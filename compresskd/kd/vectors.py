"""Terms on vectors of samples: where they point, and how they lie to each other."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from compresskd.kd.logits import logit_pair
from compresskd.kd.outputs import teacher_of
from compresskd.kd.shares import BATCH
from compresskd.options import NonNegative, checked
from compresskd.tasks import VECTORS, ModelOutputs


@checked
@dataclass(frozen=True)
class VectorCosine:
    """One less the cosine of the student's and the teacher's vector ``[N, D]`` of a sample, mean over the batch."""

    weight: NonNegative = 1.0
    kind: ClassVar[str] = "logits"
    fits: ClassVar[tuple[str, ...]] = (VECTORS,)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        s, t = logit_pair(student, teacher_of(teacher, self), standardize=False, least=1)
        return 1 - F.cosine_similarity(s, t, dim=1).mean()


@checked
@dataclass(frozen=True)
class VectorRelations:
    """Mean squared difference of the cosines of all pairs of samples in a batch; 0 for a batch of one.

    The similarities of Tung & Mori 2019, arXiv:1907.09682, of vectors instead of features, each a cosine, as those by
    which sentences are compared.
    """

    weight: NonNegative = 1.0
    kind: ClassVar[str] = "logits"
    mean_over: ClassVar[str] = BATCH
    fits: ClassVar[tuple[str, ...]] = (VECTORS,)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        pair = logit_pair(student, teacher_of(teacher, self), standardize=False, least=1)
        ours, theirs = (F.normalize(each, dim=1) for each in pair)
        pairs = max(1, len(ours) * (len(ours) - 1))
        return (ours @ ours.T - theirs @ theirs.T).fill_diagonal_(0).square().sum() / pairs
