"""Gaussian blobs, one per class, as vectors or as images: a set of any size that a small network learns."""

from math import prod
from typing import Unpack

import torch
from torch import Tensor

from compresskd.data.assemble import Options, Source, assemble
from compresskd.data.base import Data
from compresskd.data.randomness import generator
from compresskd.options import OptionError

_MOST_VALUES = 2**30  # of all samples of a split: 4 GiB


def synthetic(
    *,
    name: str,
    num_train: int,
    num_test: int,
    separation: float,
    data_seed: int,
    **options: Unpack[Options],
) -> Data:
    """Samples `separation * centre + noise`, centre and noise standard normal, classes in turn.

    `num_train` counts the samples that validation is cut from. Vectors [F] are float32; images [C, H, W] are
    mapped to uint8 as 128 + 32 x, clipped, and come back with about the same scale.
    """
    num_classes, shape = options.get("num_classes") or 0, tuple(options.get("input_shape") or ())
    if num_classes < 2:
        raise OptionError("num_classes", num_classes, ">= 2")
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise OptionError("input_shape", shape, "[F] or [C,H,W] of 1 or more each")
    for key, count in (("num_train", num_train), ("num_test", num_test)):
        if count < num_classes:
            raise OptionError(key, count, f">= {num_classes}, one a class")
        if count * prod(shape) > _MOST_VALUES:
            raise OptionError(key, count, f"<= {_MOST_VALUES // prod(shape):,} samples of this shape")
    centres = separation * torch.randn(num_classes, *shape, generator=generator("centres", data_seed))
    is_image = len(shape) == 3
    return assemble(
        name,
        _draw(centres, num_train, generator("train", data_seed)),
        test=_draw(centres, num_test, generator("test", data_seed)),
        class_names=[str(label) for label in range(num_classes)],
        mean=[128 / 255] if is_image else [0.0],
        std=[32 / 255] if is_image else [1.0],
        pixel_max=255 if is_image else 1,
        **options,
    )


def _draw(centres: Tensor, count: int, rng: torch.Generator) -> Source:
    targets = torch.arange(count) % len(centres)
    samples = centres[targets] + torch.randn(count, *centres.shape[1:], generator=rng)
    if samples.ndim == 4:
        samples = samples.mul(32).add(128).round().clamp(0, 255).to(torch.uint8)
    return Source(samples, targets)
