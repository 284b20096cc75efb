"""Random changes of image batches on the device: small frozen dataclasses, composed by name.

Each one follows `compresskd.data.base.Augmentation`: what happens to an image depends on its own draws alone,
so a view of a sample is the same pixels whatever batch it stands in. Images keep their dtype: uint8 ones stay
uint8 through a whole chain and are normalised once at its end.
"""

from compresskd.data.augmentation.affine import RandomAffine
from compresskd.data.augmentation.color import ColorJitter
from compresskd.data.augmentation.compose import Compose
from compresskd.data.augmentation.crop import RandomCrop
from compresskd.data.augmentation.erasing import Cutout, RandomErasing
from compresskd.data.augmentation.flip import HorizontalFlip
from compresskd.data.augmentation.trivial import TrivialAugment

__all__ = [
    "ColorJitter",
    "Compose",
    "Cutout",
    "HorizontalFlip",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "TrivialAugment",
]
