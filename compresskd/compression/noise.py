"""Targets drawn from a model's own distribution: the gradients that make the Fisher information of its layers."""

from __future__ import annotations

import torch
from torch import Tensor

from compresskd.tasks.base import CLASSES, LABELS


def likelihood_gradient(asks: str, logits: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of -log p(y) by `logits` [..., K], of the same shape in float32, for y drawn from p.

    p is what the task takes a row for: of classes the softmax, of labels independent Bernoulli variables, of values
    and vectors a normal distribution of variance 1 around them. The second moment of such gradients is the Fisher
    matrix, not that of labels of data (Kunstner et al. 2019, arXiv:1905.12558).

    Args:
        asks: what a row is asked for, see `compresskd.tasks.Task`.
        generator: on the CPU, where targets are drawn for every device.
    """
    logits = logits.float()
    if asks == CLASSES:
        p = logits.softmax(-1).reshape(-1, logits.shape[-1])
        drawn = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
        return p.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=p.dtype)).reshape(logits.shape)
    if asks == LABELS:
        p = logits.sigmoid()
        return p - torch.bernoulli(p.cpu(), generator=generator).to(p.device)
    return torch.randn(logits.shape, generator=generator).to(logits.device)
