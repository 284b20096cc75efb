"""Inputs on which an exported model is compared with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compresskd.data.base import Split
from compresskd.data.draw import draw
from compresskd.tasks import Inputs, map_inputs


@dataclass(frozen=True)
class Samples:
    """Inputs of N samples on the CPU, and in words what they are."""

    inputs: Inputs
    kind: str


def drawn_from(split: Split, count: int, name: str) -> Samples:
    """A draw of `count` samples of a split, the same each time, or all where it has fewer."""
    drawn = draw(split, count, seed=0)
    batch = next(iter(drawn.batches(len(drawn))))
    return Samples(
        map_inputs(lambda tensor: tensor.cpu(), batch.inputs), f"{len(batch)} {split.name} samples of {name}"
    )


def random(shape: Sequence[int], count: int) -> Samples:
    """Standard normal inputs, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, *shape, generator=generator)
    return Samples(inputs, f"{count} random inputs (the same each time; no data at hand)")
