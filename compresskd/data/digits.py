"""Scikit-learn's digits: 1,797 images of 8x8 pixels in 17 grey levels, shipped inside the library."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from compresskd.data.assemble import Options, Source, assemble
from compresskd.data.base import Data


def digits(
    *,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    test_fraction: float,
    **options: Unpack[Options],
) -> Data:
    """Inputs [1, 8, 8] of 10 classes. The set has no test split: a fixed `test_fraction` of it serves as one.

    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998.
    """
    table = torch.from_numpy(_table())
    return assemble(
        name,
        Source(table[:, :-1].to(torch.uint8).reshape(-1, 1, 8, 8), table[:, -1].long()),
        class_names=[str(digit) for digit in range(10)],
        mean=mean,
        std=std,
        pixel_max=16,
        test_fraction=test_fraction,
        **options,
    )


def _table() -> np.ndarray:
    """Rows of 64 pixels (0 to 16) and the digit, float64."""
    # Importing scikit-learn takes two seconds, reading its file two hundredths.
    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    return np.column_stack([pixels, targets])
