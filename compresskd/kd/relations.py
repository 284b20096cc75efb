"""Terms on the relations of tokens within attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from compresskd.kd.divergence import divergence, divergence_between
from compresskd.kd.features import over_pairs
from compresskd.kd.projections import is_fused
from compresskd.kd.shares import PAIRS
from compresskd.options import Count, NonNegative, checked
from compresskd.tasks import ModelOutputs

_LEAST_CHANNELS = 16  # of a relation head, as 48 heads of the paper's base models of width 768 have
_NEVER = -1e9


@checked
@dataclass(frozen=True)
class AttentionRelations:
    """``KL(softmax(X_t X_t^T / sqrt(d_t)) || softmax(X_s X_s^T / sqrt(d_s)))`` for X the queries, keys and values.

    MiniLMv2 (Wang et al. 2020, arXiv:2012.15828), equations 4 to 7: mean over relation heads and tokens, summed over
    the three. The channels of all attention heads together are divided anew into relation heads, so that both models
    may differ in width and in heads. Padding is neither a query nor a key. Found are the projections of one block of
    the teacher and of the last one of the student, by their usual names; where one layer makes all three (``c_attn``,
    ``qkv``), its output is cut into thirds.

    Raises:
        OptionError: ``heads`` does not divide the channels of both.
    """

    weight: NonNegative = 1.0
    block: Annotated[int, Ge(-1)] = -1
    heads: Count | None = None
    pairs: Mapping[str, str] | None = None
    kind: ClassVar[str] = "features"
    mean_over: ClassVar[str] = PAIRS
    match: ClassVar[str] = "attention"
    include: ClassVar[None] = None

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return over_pairs(self, student, teacher, self._relation)

    def fault(self, student: Tensor, teacher: Tensor) -> str | None:
        """Why two features cannot be compared, or None."""
        if student.ndim != 3 or teacher.ndim != 3 or student.shape[1] != teacher.shape[1]:
            return f"expected [B, L, C] of one length, got {list(student.shape)} and {list(teacher.shape)}"
        shared = math.gcd(student.shape[-1], teacher.shape[-1])
        if self.heads is not None and shared % self.heads:
            return f"heads: got {self.heads}, expected a divisor of {shared}"
        return None

    def _relation(self, s: Tensor, t: Tensor, mask: Tensor | None, name: str) -> Tensor:
        parts = 3 if is_fused(name) else 1
        pairs = zip(s.chunk(parts, dim=-1), t.chunk(parts, dim=-1), strict=True)
        return torch.stack([self._of_one(a, b, mask) for a, b in pairs]).sum()

    def _of_one(self, s: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
        shared = math.gcd(s.shape[-1], t.shape[-1])
        heads = self.heads or max(h for h in range(1, shared + 1) if shared % h == 0 and _fits(shared, h))
        ours, theirs = _relations(s, heads), _relations(t, heads)
        if mask is None:
            return divergence_between(theirs, ours)[0].mean()
        padding = ~mask[:, None, None, :]
        difference = (ours - theirs).masked_fill(padding, 0.0)
        kl, _ = divergence(theirs.masked_fill(padding, _NEVER), difference)
        return (kl * mask[:, None, :]).sum() / (heads * mask.sum().clamp_min(1))


def _fits(channels: int, heads: int) -> bool:
    return heads == 1 or channels // heads >= _LEAST_CHANNELS


def _relations(x: Tensor, heads: int) -> Tensor:
    """``[B, heads, L, L]``: scaled products of the tokens with each other."""
    split = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
