"""Targets that are numbers, brought to one scale."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from compresskd.options import OptionError


def standardized(
    targets: Mapping[str, Tensor], train: Tensor, names: Sequence[str], *, key: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Targets [N, D] of each split with mean 0 and deviation 1 over `train` [M, D], and plain values that undo it.

    Raises OptionError, of the option `key` that names the columns, for one that never changes in train.
    """
    rows = train.double()
    mean, std = rows.mean(0), rows.std(0, correction=0)
    constant = [name for name, value in zip(names, std.tolist(), strict=True) if not value > 0]
    if constant:
        raise OptionError(key, constant[0], "a column that is not the same in every training sample")
    scaled = {split: ((values.double() - mean) / std).float() for split, values in targets.items()}
    return scaled, {"names": list(names), "mean": mean.tolist(), "std": std.tolist()}
