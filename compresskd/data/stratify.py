"""Cutting one set of samples in two, class by class."""

import torch
from torch import Tensor

from compresskd.data.randomness import generator
from compresskd.options import OptionError


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


def cut_rows(
    key: str,
    targets: Tensor,
    rows: Tensor,
    *,
    fraction: float | None,
    count: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Of `rows`, those that stay and those that are cut off as `data.KEY_fraction` or `data.KEY_count` says.

    `targets` [N, ...] are those of the rows: classes [N] int64 give their shares, of others the cut is uniform.
    Raises OptionError for options that do not fit.
    """
    size = cut_size(key, fraction, count, len(rows))
    classes = targets.ndim == 1 and not targets.is_floating_point()
    try:
        labels = targets if classes else torch.zeros(len(rows), dtype=torch.int64)
        stay, cut = stratified_cut(labels, size, seed=seed)
    except ValueError as error:
        option = "fraction" if count is None else "count"
        raise OptionError(f"{key}_{option}", count or fraction, f"less: {error}") from error
    return rows[stay], rows[cut]


def check_cut(key: str, fraction: float | None, count: int | None, *, given: bool) -> None:
    """What of the options KEY_fraction and KEY_count is set makes sense, before anything is loaded.

    `given` says that the set has this split, so that nothing is cut. Raises ValueError otherwise.
    """
    options = [f"{key}_fraction"] + ([f"{key}_count"] if key == "validation" else [])
    one, got = ("count", count) if fraction is None and count is not None else ("fraction", fraction)
    if given and (fraction is not None or count is not None):
        expected = f"null: the set has its own {key} split, so nothing is cut"
        raise OptionError(f"{key}_{one}", got, expected)
    if given:
        return
    if (fraction is None) == (count is None):
        expected = f"a value of one of {', '.join(options)}: the {key} split is cut from train; write {_example(key)}"
        raise OptionError(options[0], fraction, expected)
    if fraction is not None and not 0 < fraction < 1:
        raise OptionError(options[0], fraction, f"> 0 and < 1, such as {_example(key)}")
    if count is not None and count < 1:
        raise OptionError(f"{key}_count", count, f">= 1; write for example {_example(key)}")


def cut_size(key: str, fraction: float | None, count: int | None, total: int) -> int:
    """How many of `total` samples the fraction or the count means, whichever is not None.

    Raises OptionError for what `check_cut` refuses, and if nothing would be on one side of the cut.
    """
    check_cut(key, fraction, count, given=False)
    size = count if fraction is None else round(fraction * total)
    if not size or not 0 < size < total:
        expected = (
            f"to cut 1 to {total - 1} of {total} samples, not {size}; write for example {_example(key)}"
        )
        one, got = ("count", count) if fraction is None else ("fraction", fraction)
        raise OptionError(f"{key}_{one}", got, expected)
    return size


def _example(key: str) -> str:
    return f"data.{key}_fraction=0.1" + (f" data.{key}_count=null" if key == "validation" else "")
