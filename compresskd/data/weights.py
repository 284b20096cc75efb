"""How much the samples of each class count in the label loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compresskd.options import OptionError


def class_weights(given: Sequence[float] | str, targets: Tensor, class_names: Sequence[str]) -> Tensor:
    """[K] float32: the given ones, or for "balanced" N / (K N_k), so that each class weighs the same in train.

    Raises OptionError for others, and for targets that are no classes [N].
    """
    if targets.ndim != 1 or targets.is_floating_point():
        raise OptionError("class_weights", given, "null: targets are no classes")
    if isinstance(given, str):
        if given != "balanced":
            raise OptionError("class_weights", given, "balanced, a number for each class, or null")
        counts = torch.bincount(targets, minlength=len(class_names))
        return (len(targets) / (len(class_names) * counts.clamp_min(1))).float()
    if len(given) != len(class_names):
        raise OptionError("class_weights", given, f"{len(class_names)} numbers, one for each class")
    if min(given) < 0 or max(given) <= 0:
        raise OptionError("class_weights", given, "numbers >= 0, one of them above")
    return torch.tensor(given, dtype=torch.float32)
