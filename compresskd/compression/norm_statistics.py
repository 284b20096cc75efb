"""Running statistics of batch norm, estimated anew where the layers before have changed.

A truncated weight changes means and variances of what a batch norm normalizes, and those of the dense model are then
wrong for every input alike. Statistics of the compressed model take forward passes and no label (Li et al., EagleEye,
ECCV 2020, arXiv:2007.02491, section 3.3: adaptive batch normalization after pruning).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn

from compresskd.data.base import Split
from compresskd.progress import told
from compresskd.training.evaluation import evaluation_mode

KEEP, REESTIMATE = "keep", "reestimate"
WAYS = (KEEP, REESTIMATE)
_BatchNorm = nn.modules.batchnorm._BatchNorm


def norms_of(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def reestimate(
    model: nn.Module, split: Split, *, batch_size: int, note: Callable[[str], None] = lambda _: None
) -> None:
    """Replace the running statistics of `model` by the means over batches of `split`; in place.

    Each batch is normalized by its own statistics, as in training, and counts equally but for a last one that is
    less than half of the others, which is left out unless it is the only one. All else runs as in evaluation; modes,
    momenta and counts of batches are left as they were.

    Raises:
        ValueError: a single sample, which has no variance.
    """
    norms = norms_of(model)
    if len(split) < 2:
        raise ValueError(f"{split.name}: {len(split)} samples have no variance, expected at least 2")
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    with evaluation_mode(model), ExitStack() as stack:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            stack.callback(_put_back, norm, momentum, count)
            norm.num_batches_tracked = torch.tensor(0)
            norm.momentum = None  # a plain mean
            norm.train()
        batches = (b for b in split.batches(batch_size) if len(b) * 2 > min(batch_size, len(split)))
        for batch in told(batches, -(-len(split) // batch_size), "batch norm, batches", note):
            batch.call(model)


def _put_back(norm: _BatchNorm, momentum: float | None, count: torch.Tensor | None) -> None:
    norm.momentum, norm.num_batches_tracked = momentum, count
