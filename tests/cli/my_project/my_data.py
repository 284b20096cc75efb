"""Wines: 178 samples of 13 chemical measurements, three growers."""

import torch
from sklearn.datasets import load_wine

from compresskd.data import Source, assemble


def wine(name: str, test_fraction: float, **options):
    x, y = load_wine(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    samples = Source(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    return assemble(
        name,
        samples,
        class_names=["grower 1", "grower 2", "grower 3"],
        mean=[0.0],
        std=[1.0],
        pixel_max=1,
        test_fraction=test_fraction,
        **options,
    )
