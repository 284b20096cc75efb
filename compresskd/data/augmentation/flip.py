"""Mirror images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.data.augmentation.levels import Probability
from compresskd.options import checked


@checked
@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged, with this `probability`."""

    probability: Probability = 0.5
    num_draws = 1

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W]; draws [B, 1]."""
        num = len(images)
        # Choosing whole images copies memory in long runs; a masked `where` takes three times as long.
        both = torch.cat([images, images.flip(-1)]).view(2 * num, -1)
        chosen = torch.arange(num, device=images.device) + num * (draws[:, 0] < self.probability)
        return both.index_select(0, chosen).view_as(images)
