"""Cutting one set of samples in two, class by class."""

import torch
from torch import Tensor

from compresskd.data.randomness import generator


def stratified_cut(targets: Tensor, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows that are cut off, both rising, as a pure function of the arguments.

    `targets` [N] int64 are classes. Exactly `count` rows are cut; each class gives its share, rounded by
    largest remainder (ties by class number). Raises ValueError if a class would be left without a row.
    """
    classes, sizes = targets.unique(return_counts=True)
    quotas = sizes.double() * count / len(targets)
    cut_sizes = quotas.floor().long()
    by_remainder = (quotas - cut_sizes).sort(descending=True, stable=True).indices
    cut_sizes[by_remainder[: count - int(cut_sizes.sum())]] += 1
    if (cut_sizes >= sizes).any():
        worst = int((sizes - cut_sizes).argmin())
        raise ValueError(
            f"cutting {count} of {len(targets)} samples leaves none of class {int(classes[worst])}, "
            f"which has {int(sizes[worst])}"
        )
    shuffled = torch.randperm(len(targets), generator=generator("cut", seed))
    cut = [
        shuffled[targets[shuffled] == label][:size]
        for label, size in zip(classes.tolist(), cut_sizes.tolist(), strict=True)
    ]
    is_cut = torch.zeros(len(targets), dtype=torch.bool)
    is_cut[torch.cat(cut)] = True
    rows = torch.arange(len(targets))
    return rows[~is_cut], rows[is_cut]


def cut_size(key: str, fraction: float | None, count: int | None, total: int) -> int:
    """How many of `total` samples `data.KEY_fraction` or `data.KEY_count`, whichever is given, means.

    Raises ValueError if both or none are given, or if nothing would be on one side of the cut.
    """
    if (fraction is None) == (count is None):
        given = "neither" if fraction is None else "both"
        raise ValueError(
            f"data.{key}_fraction and data.{key}_count: expected one of them, got {given}; write for example "
            f"data.{key}_fraction=0.1 data.{key}_count=null"
        )
    if fraction is not None:
        if not 0 < fraction < 1:
            raise ValueError(
                f"data.{key}_fraction: expected a number between 0 and 1 (both excluded), got {fraction}; "
                f"write for example data.{key}_fraction=0.1"
            )
        size = round(fraction * total)
        came, option = f"{fraction} of {total} samples", "fraction"
    else:
        size = count or 0
        came, option = str(count), "count"
    if not 0 < size < total:
        raise ValueError(
            f"data.{key}_{option}: expected to cut 1 to {total - 1} of {total} samples, got {came}; write "
            f"for example data.{key}_fraction=0.1 data.{key}_count=null"
        )
    return size
