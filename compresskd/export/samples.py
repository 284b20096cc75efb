"""Inputs on which an exported model is compared with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.data.base import Split


@dataclass(frozen=True)
class Samples:
    """Inputs [N, ...] on the CPU, and in words what they are."""

    inputs: Tensor
    kind: str


def first_of(split: Split, count: int, name: str) -> Samples:
    """The first `count` samples of a split, or all where it has fewer."""
    count = min(count, len(split))
    batch = next(iter(split.batches(count)))
    return Samples(batch.inputs.cpu(), f"{len(batch.inputs)} {split.name} samples of {name}")


def random(shape: Sequence[int], count: int) -> Samples:
    """Standard normal inputs, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, *shape, generator=generator)
    return Samples(inputs, f"{count} random inputs (the same each time; no data at hand)")
