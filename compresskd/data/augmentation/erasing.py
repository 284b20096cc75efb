"""Blanked rectangles."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.data.augmentation.levels import Probability, Range, between, per_image, pick
from compresskd.options import Count, Fraction, OptionError, checked


@checked
@dataclass(frozen=True)
class Cutout:
    """A square of `size` pixels, centred on any pixel and clipped at the border, becomes grey level `fill`.

    T. DeVries, G. W. Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.
    """

    size: Count = 16
    fill: Fraction = 0.0
    num_draws = 2

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W]; draws [B, 2]: the row and the column of the centre."""
        top = pick(draws[:, 0], images.shape[2]) - self.size // 2
        left = pick(draws[:, 1], images.shape[3]) - self.size // 2
        return _blank(images, top, left, top + self.size, left + self.size, fill=self.fill * pixel_max)


@checked
@dataclass(frozen=True)
class RandomErasing:
    """With `probability`, a rectangle that covers a share `area` of the image becomes grey level `fill`.

    Its height : width, within `ratio`, is drawn log-uniformly; a side longer than the image is cut to it,
    where Z. Zhong et al., "Random erasing data augmentation", AAAI 2020, draw again.
    """

    probability: Probability = 0.5
    area: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    fill: Fraction = 0.0
    num_draws = 5

    def __post_init__(self):
        if self.area[1] > 1:
            raise OptionError("area", self.area, "[LOW, HIGH] within 0 to 1")

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W]; draws [B, 5]: whether, area, ratio, row and column."""
        height, width = images.shape[2:]
        area = between(draws[:, 1], *self.area) * height * width
        ratio = between(draws[:, 2], math.log(self.ratio[0]), math.log(self.ratio[1])).exp()
        rows = (area * ratio).sqrt().round().long().clamp(1, height)
        columns = (area / ratio).sqrt().round().long().clamp(1, width)
        rows = rows * (draws[:, 0] < self.probability)
        top = (draws[:, 3] * (height - rows + 1)).long().minimum(height - rows)
        left = (draws[:, 4] * (width - columns + 1)).long().minimum(width - columns)
        return _blank(images, top, left, top + rows, left + columns, fill=self.fill * pixel_max)


def _blank(
    images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, *, fill: float
) -> Tensor:
    """Rows top to bottom and columns left to right (the ends excluded) of each image set to `fill`."""
    row = torch.arange(images.shape[2], device=images.device).view(-1, 1)
    column = torch.arange(images.shape[3], device=images.device)
    inside = (row >= per_image(top)) & (row < per_image(bottom))
    inside = inside & (column >= per_image(left)) & (column < per_image(right))
    kept = images * (~inside).to(images.dtype)
    if fill == 0:
        return kept
    value = fill if images.is_floating_point() else round(fill)
    return kept + inside.to(images.dtype) * value
