"""A few samples of a split that stand for all of it: what calibration, starts and checks look at."""

import torch
from torch import Tensor

from compresskd.data.base import Split
from compresskd.data.randomness import generator


def draw(split: Split, count: int, *, seed: int) -> Split:
    """`count` samples of `split`, all where it has fewer, unaugmented and in the order of `drawn_order`.

    Data are often stored class by class, where the first rows would be of one class. Raises ValueError for a
    count below 1.
    """
    if count < 1:
        raise ValueError(f"a draw of {split.name}: got {count} samples, expected >= 1")
    strata = split.strata
    labels = torch.arange(len(split)) if strata is None else strata.cpu()
    chosen = drawn_order(labels, seed=seed)[:count]
    return split.take(chosen, f"{split.fingerprint}/{count}/{seed}")


def drawn_order(targets: Tensor, *, seed: int) -> Tensor:
    """[N] int64, all rows in a random order of which every beginning holds each class in its share.

    A pure function of `targets` [N] and `seed`. Of each class the rows, shuffled, are spread evenly over the order
    from a random offset within the first step (systematic sampling), so that a beginning of n rows has n times the
    share of the class, rounded up or down at random. Where every target is another (regression), where there are
    more classes than rows are taken, and where targets are no single values ([N, ...]), this is a uniform draw.
    """
    rng = generator("draw", seed)
    shuffled = torch.randperm(len(targets), generator=rng)
    labels = targets if targets.ndim == 1 else torch.arange(len(targets))
    _, inverse, sizes = labels[shuffled].unique(return_inverse=True, return_counts=True)
    by_class = inverse.sort(stable=True).indices
    rank = torch.empty_like(inverse)
    rank[by_class] = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    offsets = torch.rand(len(sizes), dtype=torch.float64, generator=rng)
    place = (rank + offsets[inverse]) / sizes[inverse]
    return shuffled[place.sort(stable=True).indices]
