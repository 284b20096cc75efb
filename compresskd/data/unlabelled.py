"""Samples without labels: where they are read, and what stands in the place of their targets."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from compresskd.options import OptionError
from compresskd.tasks import UNLABELLED

KEY = "unlabelled_path"
KEYS = (KEY, "unlabelled_spans", "unlabelled_replacements", "unlabelled_subwords")


def without_labels(count: int, like: Tensor) -> Tensor:
    """[count, ...] in the place of targets such as `like` [N, ...]: -1 for classes, NaN for numbers."""
    fill = math.nan if like.is_floating_point() else UNLABELLED
    return torch.full((count, *like.shape[1:]), fill, dtype=like.dtype)


@contextmanager
def of_unlabelled() -> Iterator[None]:
    """Within, what is refused of a path is refused of that of the unlabelled samples."""
    try:
        yield
    except OptionError as error:
        if error.field != "path":
            raise
        raise OptionError(KEY, error.got, error.expected) from error
