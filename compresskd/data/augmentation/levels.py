"""Between stored pixels and the unit range in which colours and positions are computed."""

from typing import Annotated, Any

import torch
from annotated_types import Gt, Le
from pydantic import AfterValidator
from torch import Tensor

from compresskd.options import Positive


def _rising(pair: Any) -> Any:
    if len(pair) != 2 or pair[0] > pair[1]:
        raise ValueError("[LOW, HIGH]")
    return pair


Probability = Annotated[float, Gt(0), Le(1)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]


def to_levels(images: Tensor, pixel_max: float) -> Tensor:
    """Stored pixels as float32, 0 black and 1 white; a new tensor."""
    return images.to(torch.float32, copy=True).div_(pixel_max)


def from_levels(levels: Tensor, like: Tensor, pixel_max: float) -> Tensor:
    """Back to the dtype of `like`, clipped to its range, rounded where it holds integers."""
    pixels = levels.clamp(0, 1).mul_(pixel_max)
    return pixels if like.is_floating_point() else pixels.round_().to(like.dtype)


def pick(draw: Tensor, count: int) -> Tensor:
    """Uniform draws in [0, 1) to integers 0 to count - 1, int64."""
    # In float32 a draw next to 1 may round up to `count`.
    return (draw * count).long().clamp_(max=count - 1)


def between(draw: Tensor, low: float, high: float) -> Tensor:
    """Uniform draws in [0, 1) to [low, high)."""
    return low + draw * (high - low)


def per_image(values: Tensor) -> Tensor:
    """[B] to [B, 1, 1, 1], one value an image."""
    return values.view(-1, 1, 1, 1)
