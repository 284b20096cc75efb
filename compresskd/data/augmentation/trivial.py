"""A policy without parameters: one operation an image, its strength drawn too."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.data.augmentation import color
from compresskd.data.augmentation.affine import warp
from compresskd.data.augmentation.levels import from_levels, pick, to_levels

_ENHANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": color.brightness,
    "saturation": color.saturation,
    "contrast": color.contrast,
    "sharpness": color.sharpness,
}
_GEOMETRIC = ("shear_x", "shear_y", "right", "down", "angle")
_OPERATIONS = (*_GEOMETRIC, *_ENHANCE, "identity", "posterize", "solarize", "autocontrast", "equalize")


@dataclass(frozen=True)
class TrivialAugment:
    """One of 14 operations for each image, at one of 31 strengths, either way where there are two.

    The "wide" space of S. G. Müller, F. Hutter, "TrivialAugment: tuning-free yet state-of-the-art data
    augmentation", ICCV 2021, table 1: shears up to 0.99, shifts up to 32 pixels (of CIFAR's 32: here
    up to one image side), rotation up to 135 degrees, factors 0.01 to 1.99, 2 to 8 bits, any threshold.
    """

    num_draws = 3

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """Images [B, C, H, W]; draws [B, 3]: the operation, its strength and its sign."""
        operation = pick(draws[:, 0], len(_OPERATIONS))
        strength = pick(draws[:, 1], 31) / 30.0
        signed = torch.where(draws[:, 2] < 0.5, -strength, strength)
        out = images.clone()
        for name, rows in _groups(operation):
            chosen = images[rows]
            if name == "geometric":
                out[rows] = _geometric(chosen, operation[rows], signed[rows], pixel_max)
            else:
                levels = _photometric(name, to_levels(chosen, pixel_max), strength[rows], signed[rows])
                out[rows] = from_levels(levels, images, pixel_max)
        return out


def _groups(operation: Tensor) -> list[tuple[str, Tensor]]:
    """Rows of each operation that occurs; the geometric ones together, since one interpolation serves all."""
    groups = [("geometric", operation < len(_GEOMETRIC))]
    groups += [
        (name, operation == number)
        for number, name in enumerate(_OPERATIONS)
        if number >= len(_GEOMETRIC) and name != "identity"
    ]
    rows = [(name, mask.nonzero().flatten()) for name, mask in groups]
    return [(name, chosen) for name, chosen in rows if len(chosen)]


def _geometric(images: Tensor, operation: Tensor, signed: Tensor, pixel_max: float) -> Tensor:
    height, width = images.shape[2:]
    full = {"shear_x": 0.99, "shear_y": 0.99, "right": width, "down": height, "angle": 135 / 180 * torch.pi}
    amounts = {
        name: full[name] * signed * (operation == number).float() for number, name in enumerate(_GEOMETRIC)
    }
    return warp(images, scale=torch.ones_like(signed), pixel_max=pixel_max, **amounts)


def _photometric(name: str, levels: Tensor, strength: Tensor, signed: Tensor) -> Tensor:
    if name in _ENHANCE:
        return _ENHANCE[name](levels, 1 + 0.99 * signed)
    if name == "posterize":
        return color.posterize(levels, 8 - (strength * 6).round())
    if name == "solarize":
        return color.solarize(levels, 1 - strength)
    return color.autocontrast(levels) if name == "autocontrast" else color.equalize(levels)
