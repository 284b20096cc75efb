"""The largest outputs of a row, and all others as one: what is kept of a teacher with many outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from compresskd.tasks import TopOutputs


def pack(logits: Tensor, k: int, temperatures: tuple[float, ...]) -> TopOutputs:
    """The k largest of logits [N, K], and for each temperature the logarithm of what the others come to."""
    values, index = logits.float().topk(k, dim=1)
    others = logits.float().scatter(1, index, -torch.inf)
    rest = {temperature: (others / temperature).logsumexp(dim=1) for temperature in temperatures}
    return TopOutputs(values, index, rest)


def softened_pair(student: Tensor, teacher: TopOutputs, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits [N, k + 1] over the temperature: of the teacher's k largest outputs and of all others together; and how
    far the student's [N, K] are from them. What is divided is exact: the k + 1 outcomes of both softmaxes.

    Raises:
        ValueError: the teacher's others were summed up at another temperature.
    """
    if temperature not in teacher.rest:
        raise ValueError(f"expected outputs packed at temperature {temperature}, got {list(teacher.rest)}")
    softened = student.float() / temperature
    others = softened.scatter(1, teacher.index, -torch.inf).logsumexp(dim=1, keepdim=True)
    ours = torch.cat([softened.gather(1, teacher.index), others], dim=1)
    theirs = torch.cat([teacher.values / temperature, teacher.rest[temperature][:, None]], dim=1)
    return theirs, ours - theirs
