"""Rotation, shift, scale and shear, one interpolation for all of them."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor

from compresskd.data.augmentation.levels import Range, between, from_levels, to_levels
from compresskd.options import checked


@checked
@dataclass(frozen=True)
class RandomAffine:
    """A random affine map about the centre, bilinear, black outside.

    degrees: rotation by up to this angle either way. translate: shift by up to this share of the height and
    of the width. scale: range of the magnification. shear: along x by up to this angle, in degrees.
    """

    degrees: Annotated[float, Ge(0), Le(180)] = 10.0
    translate: Annotated[float, Ge(0), Lt(1)] = 0.1
    scale: Range = (0.9, 1.1)
    shear: Annotated[float, Ge(0), Lt(90)] = 0.0
    num_draws = 5

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W]; draws [B, 5]: angle, vertical and horizontal shift, scale, shear."""
        height, width = images.shape[2:]
        angle = between(draws[:, 0], -1, 1) * math.radians(self.degrees)
        return warp(
            images,
            angle=angle,
            down=between(draws[:, 1], -1, 1) * self.translate * height,
            right=between(draws[:, 2], -1, 1) * self.translate * width,
            scale=between(draws[:, 3], *self.scale),
            shear_x=(between(draws[:, 4], -1, 1) * math.radians(self.shear)).tan(),
            shear_y=torch.zeros_like(angle),
            pixel_max=pixel_max,
        )


def warp(
    images: Tensor,
    *,
    angle: Tensor,
    down: Tensor,
    right: Tensor,
    scale: Tensor,
    shear_x: Tensor,
    shear_y: Tensor,
    pixel_max: float,
) -> Tensor:
    """Content is sheared, scaled, rotated counter-clockwise about the centre, then shifted (in pixels).

    Images [B, C, H, W]; everything else [B]: angle in radians, shears as tangents. An output pixel (x, y),
    measured from the centre, takes the value at shear^-1 R(-angle) ((x, y) - shift) / scale.
    """
    height, width = images.shape[2:]
    column = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    row = torch.arange(height, device=images.device, dtype=torch.float32).view(-1, 1) - (height - 1) / 2
    x, y = column - _plane(right), row - _plane(down)
    cos, sin = _plane(angle.cos() / scale), _plane(angle.sin() / scale)
    # Rows grow downward: counter-clockwise on the screen is (x, y) to (x cos + y sin, -x sin + y cos).
    x, y = x * cos - y * sin, x * sin + y * cos
    determinant = _plane(1 - shear_x * shear_y)
    x, y = (x - _plane(shear_x) * y) / determinant, (y - _plane(shear_y) * x) / determinant
    # grid_sample counts from -1 to 1 over the whole extent of the image (align_corners=False).
    grid = torch.stack([x * (2 / width), y * (2 / height)], dim=-1)
    sampled = F.grid_sample(to_levels(images, pixel_max), grid, mode="bilinear", align_corners=False)
    return from_levels(sampled, images, pixel_max)


def _plane(values: Tensor) -> Tensor:
    """[B] to [B, 1, 1]."""
    return values.view(-1, 1, 1)
