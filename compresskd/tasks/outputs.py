"""What a model said of a batch, in rows: the only thing that a loss or a metric sees of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from compresskd.tasks.base import Task


@dataclass(frozen=True)
class TopOutputs:
    """The k largest outputs of each row, and the others as one.

    Args:
        values: ``[N, k]`` float32, falling.
        index: ``[N, k]`` int64, which outputs they are.
        rest: by temperature T, ``[N]``: the logarithm of the sum of ``exp(logit / T)`` over all others.
    """

    values: Tensor
    index: Tensor
    rest: Mapping[float, Tensor]

    def to(self, device: torch.device) -> TopOutputs:
        """The same on a device."""
        rest = {temperature: each.to(device) for temperature, each in self.rest.items()}
        return TopOutputs(self.values.to(device), self.index.to(device), rest)


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of one model for one batch of B samples, of which N rows count.

    A row is what one prediction is made for: a sample, or a token of one. Padding and prompts are no rows.

    Args:
        logits: ``[N, K]``, any floating dtype.
        features: outputs of captured modules by fully qualified name, ``[B, C]``, ``[B, L, C]`` or
            ``[B, C, H, W]``; empty where no term asks for features.
        mask: ``[B, L]`` bool, which positions of features ``[B, L, C]`` are no padding; None where all count.
        sample: ``[N]`` int64, the sample of the batch that a row belongs to; None where rows are the samples.
        weights: ``[N]`` float32, how much a row counts in the label loss; None where all count alike.
        task: that the model does, for the label loss; None for classification.
        top: of a teacher whose outputs are packed, in place of its logits, which are then the values of these.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    sample: Tensor | None = None
    weights: Tensor | None = None
    task: Task | None = None
    top: TopOutputs | None = None
