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
    by_class = shuffled[targets[shuffled].sort(stable=True).indices]
    rank = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    is_cut = torch.zeros(len(targets), dtype=torch.bool)
    is_cut[by_class] = rank < cut_sizes.repeat_interleave(sizes)
    rows = torch.arange(len(targets))
    return rows[~is_cut], rows[is_cut]


def check_cut(key: str, fraction: float | None, count: int | None, *, given: bool) -> None:
    """What of `data.KEY_fraction` and `data.KEY_count` is set makes sense, before anything is loaded.

    `given` says that the set has this split, so that nothing is cut. Raises ValueError otherwise.
    """
    options = [f"data.{key}_fraction"] + ([f"data.{key}_count"] if key == "validation" else [])
    if given and (fraction is not None or count is not None):
        raise ValueError(
            f"{options[0]}: the set has its own {key} split, so nothing is cut; write "
            f"{' '.join(f'{option}=null' for option in options)}"
        )
    if given:
        return
    if (fraction is None) == (count is None):
        raise ValueError(
            f"{', '.join(options)}: expected {'one of them' if count else 'a value'}, since the {key} split is cut "
            f"from train, got {'both' if count else 'null'}; write {_example(key)}"
        )
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(
            f"data.{key}_fraction: expected a number between 0 and 1 (both excluded), got {fraction}; write for "
            f"example {_example(key)}"
        )
    if count is not None and count < 1:
        raise ValueError(
            f"data.{key}_count: expected 1 sample or more, got {count}; write for example {_example(key)}"
        )


def cut_size(key: str, fraction: float | None, count: int | None, total: int) -> int:
    """How many of `total` samples the fraction or the count means, whichever is not None.

    Raises ValueError for what `check_cut` refuses, and if nothing would be on one side of the cut.
    """
    check_cut(key, fraction, count, given=False)
    size = count if fraction is None else round(fraction * total)
    if not size or not 0 < size < total:
        option = f"data.{key}_count" if fraction is None else f"data.{key}_fraction"
        raise ValueError(
            f"{option}: expected to cut 1 to {total - 1} of {total} samples, got "
            f"{count if fraction is None else fraction}, which is {size}; write for example {_example(key)}"
        )
    return size


def _example(key: str) -> str:
    return f"data.{key}_fraction=0.1" + (f" data.{key}_count=null" if key == "validation" else "")
