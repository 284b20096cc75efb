"""Changes of brightness, contrast and colour of levels [B, C, H, W], float32, 0 black and 1 white."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from compresskd.data.augmentation.levels import between, from_levels, per_image, to_levels
from compresskd.options import Fraction, checked

# Luma of ITU-R BT.601, as image libraries use it.
_LUMA = (0.299, 0.587, 0.114)
# From RGB to YIQ, where a turn of the (I, Q) plane is a change of hue.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@checked
@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue changed in this order.

    The first three are factors drawn from 1 - value to 1 + value; `hue` is a turn of up to that share of the
    circle either way (0.5 is the opposite colour). The turn is made in YIQ space, which keeps luma.
    """

    brightness: Fraction = 0.2
    contrast: Fraction = 0.2
    saturation: Fraction = 0.2
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0
    num_draws = 4

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W]; draws [B, 4]. Raises ValueError for a colour change of grey images."""
        if (self.saturation or self.hue) and images.shape[1] != 3:
            raise ValueError(
                f"ColorJitter: expected 3 channels to change saturation or hue, got {images.shape[1]}; write "
                f"saturation: 0 and hue: 0"
            )
        factor = between(draws, -1, 1)
        levels = to_levels(images, pixel_max)
        if self.brightness:
            levels = brightness(levels, 1 + factor[:, 0] * self.brightness)
        if self.contrast:
            levels = contrast(levels, 1 + factor[:, 1] * self.contrast)
        if self.saturation:
            levels = saturation(levels, 1 + factor[:, 2] * self.saturation)
        if self.hue:
            levels = turn_hue(levels, factor[:, 3] * self.hue)
        return from_levels(levels, images, pixel_max)


def luma(levels: Tensor) -> Tensor:
    """[B, C, H, W] to grey [B, 1, H, W]."""
    if levels.shape[1] != 3:
        return levels.mean(1, keepdim=True)
    red, green, blue = levels.split(1, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def _blend(other: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """`other` at factor 0, `levels` at 1, further at more, clipped."""
    return (other + (levels - other) * per_image(factor)).clamp_(0, 1)


def brightness(levels: Tensor, factor: Tensor) -> Tensor:
    """Towards black (factor [B] under 1) or away from it."""
    return (levels * per_image(factor)).clamp_(0, 1)


def contrast(levels: Tensor, factor: Tensor) -> Tensor:
    """Towards the mean luma of each image, or away from it."""
    return _blend(luma(levels).mean((1, 2, 3), keepdim=True), levels, factor)


def saturation(levels: Tensor, factor: Tensor) -> Tensor:
    """Towards grey, or away from it."""
    return _blend(luma(levels), levels, factor)


def sharpness(levels: Tensor, factor: Tensor) -> Tensor:
    """Towards a 3x3 smoothing (centre weight 5 of 13), or away from it; the border stays."""
    kernel = torch.ones(3, 3, device=levels.device)
    kernel[1, 1] = 5
    weight = (kernel / 13).expand(levels.shape[1], 1, 3, 3)
    smooth = levels.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(levels, weight, groups=levels.shape[1])
    return _blend(smooth, levels, factor)


def turn_hue(levels: Tensor, turn: Tensor) -> Tensor:
    """Colours [B, 3, H, W] turned by `turn` [B] of the circle in YIQ space."""
    yiq = torch.tensor(_YIQ, device=levels.device)
    angle = turn * (2 * torch.pi)
    rotation = torch.eye(3, device=levels.device).repeat(len(levels), 1, 1)
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2] = -angle.sin()
    rotation[:, 2, 1] = angle.sin()
    matrix = yiq.inverse() @ rotation @ yiq
    red, green, blue = levels.split(1, dim=1)
    mixed = [
        per_image(matrix[:, row, 0]) * red
        + per_image(matrix[:, row, 1]) * green
        + per_image(matrix[:, row, 2]) * blue
        for row in range(3)
    ]
    return torch.cat(mixed, dim=1).clamp_(0, 1)


def posterize(levels: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` [B] (0 to 8) of the 8 that a level has."""
    step = per_image(2.0 ** (8 - bits))
    return ((levels * 255).round_() / step).floor_() * step / 255


def solarize(levels: Tensor, threshold: Tensor) -> Tensor:
    """Levels of `threshold` [B] and above are inverted."""
    return torch.where(levels >= per_image(threshold), 1 - levels, levels)


def autocontrast(levels: Tensor) -> Tensor:
    """Each channel stretched to the full range; a flat one stays."""
    low, high = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
    extent = high - low
    return torch.where(extent > 0, (levels - low) / extent.clamp(min=1e-6), levels)


def equalize(levels: Tensor) -> Tensor:
    """Each channel mapped by its cumulative histogram of 256 bins (as Pillow does it); a flat one stays."""
    shape = levels.shape
    bins = (levels * 255).round().long().flatten(2)
    histogram = torch.zeros(*shape[:2], 256, dtype=torch.int64, device=levels.device)
    histogram.scatter_add_(2, bins, torch.ones_like(bins))
    last = 255 - (histogram.flip(2) > 0).int().argmax(2, keepdim=True)
    step = (histogram.sum(2, keepdim=True) - histogram.gather(2, last)) // 255
    before = histogram.cumsum(2) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255).float() / 255
    return torch.where((step > 0).unsqueeze(3), table.gather(2, bins).view(shape), levels)
