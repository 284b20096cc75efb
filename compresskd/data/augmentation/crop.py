"""Crops of a padded image, the usual augmentation of small images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskd.data.augmentation.levels import pick
from compresskd.options import Count, Fraction, checked


@checked
@dataclass(frozen=True)
class RandomCrop:
    """Pad each side by `padding` pixels of level `fill` (0 black, 1 white); cut the old size out anywhere."""

    padding: Count = 4
    fill: Fraction = 0.0
    num_draws = 2

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W]; draws [B, 2]: the vertical and the horizontal offset."""
        num, channels, height, width = images.shape
        padded = F.pad(images, (self.padding,) * 4, value=_as_pixel(images, self.fill * pixel_max))
        padded_height, padded_width = padded.shape[2:]
        offsets = pick(draws, 2 * self.padding + 1)
        # Every row of every crop is `width` pixels in a row of memory: a view of all such windows turns the
        # whole crop into one copy of rows, several times faster than indexing pixels.
        windows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
        planes = torch.arange(num * channels, device=images.device).view(num, channels, 1) * padded_height
        top = planes + offsets[:, 0].view(num, 1, 1) + torch.arange(height, device=images.device)
        starts = top * padded_width + offsets[:, 1].view(num, 1, 1)
        return windows.index_select(0, starts.flatten()).view_as(images)


def _as_pixel(images: Tensor, value: float) -> float:
    return value if images.is_floating_point() else round(value)
