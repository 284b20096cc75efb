"""From stored pixels to the inputs of a network."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from compresskd.options import OptionError


@dataclass(frozen=True)
class Normalize:
    """`(pixels / pixel_max - mean) / std`, per channel, as float32.

    `mean` and `std` have one value, or one per channel ([B, C, H, W]) or feature ([B, F]). The division is
    folded into one multiplication and one addition, kept as two operations: each is correctly rounded, so an
    image gives the same bits in any batch and on any device (a fused kernel may round its tail differently).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_max: float = 1.0

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"data.mean has {len(self.mean)} values and data.std {len(self.std)}: write as many of one "
                f"as of the other, one per channel"
            )
        if not all(0 < value < math.inf for value in self.std):
            raise OptionError("std", self.std, "finite numbers > 0")
        if not all(map(math.isfinite, self.mean)):
            raise OptionError("mean", self.mean, "finite numbers")
        if not 0 < self.pixel_max < math.inf:
            raise OptionError("pixel_max", self.pixel_max, "a finite number > 0, the value of white")

    def check(self, input_shape: tuple[int, ...]) -> None:
        """Raise ValueError if the number of values does not fit inputs of this shape."""
        if len(self.mean) not in (1, input_shape[0]):
            raise OptionError(
                "mean", self.mean, f"1 or {input_shape[0]} values (of std too) for inputs {list(input_shape)}"
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [B, C, H, W] or [B, F], uint8 or float32, to float32 of the same shape."""
        scale, shift = _affine(self, pixels.ndim, pixels.device)
        return pixels.to(torch.float32, copy=True).mul_(scale).add_(shift)


@lru_cache(maxsize=64)
def _affine(normalize: Normalize, ndim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, shaped to broadcast over a batch, kept on the device between batches."""
    mean = torch.tensor(normalize.mean, dtype=torch.float64)
    std = torch.tensor(normalize.std, dtype=torch.float64)
    shape = (-1,) + (1,) * (ndim - 2)
    scale = 1.0 / (normalize.pixel_max * std)
    return (
        scale.float().reshape(shape).to(device),
        (-mean / std).float().reshape(shape).to(device),
    )
