"""Several augmentations, one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import MinLen
from torch import Tensor

from compresskd.data.base import Augmentation
from compresskd.options import checked


@checked
@dataclass(frozen=True)
class Compose:
    """`operations` in their order; named, so that each can be changed or removed from the command line.

    Every operation gets its own columns of the draws.
    """

    operations: Annotated[Mapping[str, Augmentation], MinLen(1)]

    @property
    def num_draws(self) -> int:
        """The sum over operations."""
        return sum(operation.num_draws for operation in self.operations.values())

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W] and draws [B, num_draws] to images of the same shape and dtype."""
        counts = [operation.num_draws for operation in self.operations.values()]
        for operation, columns in zip(self.operations.values(), draws.split(counts, dim=1), strict=True):
            images = operation(images, columns, pixel_max)
        return images
