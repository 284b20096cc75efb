"""Colour operations against Pillow's, and the policy that draws them."""

import colorsys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from compresskd.data.augmentation import ColorJitter, TrivialAugment, color, trivial
from compresskd.data.augmentation.levels import from_levels, to_levels


def make_images(count=4, channels=3, side=12):
    """Smooth random images: uint8 [count, channels, side, side]."""
    rng = torch.Generator().manual_seed(0)
    small = torch.rand(count, channels, 4, 4, generator=rng)
    return (torch.nn.functional.interpolate(small, size=side, mode="bilinear") * 255).to(torch.uint8)


def apply(function, images, *values):
    count = len(images)
    return from_levels(
        function(to_levels(images, 255.0), *(torch.full((count,), value) for value in values)), images, 255.0
    )


def with_pillow(function, images):
    out = [np.asarray(function(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("function", "enhance", "tolerance"),
    [
        (color.brightness, ImageEnhance.Brightness, 1),
        (color.saturation, ImageEnhance.Color, 2),
        (color.contrast, ImageEnhance.Contrast, 2),
        (color.sharpness, ImageEnhance.Sharpness, 2),
    ],
)
def test_enhancements_are_pillows_up_to_rounding(function, enhance, tolerance, factor):
    images = make_images()
    out = apply(function, images, factor)
    expected = with_pillow(lambda image: enhance(image).enhance(factor), images)
    assert int((out.int() - expected.int()).abs().max()) <= tolerance


def test_table_operations_are_pillows():
    images = make_images()
    images[0, 0] = 70
    for bits in (1, 3, 7):
        expected = with_pillow(partial(ImageOps.posterize, bits=bits), images)
        assert torch.equal(apply(color.posterize, images, float(bits)), expected)
    out = apply(color.solarize, images, 128 / 255)
    assert torch.equal(out, with_pillow(lambda image: ImageOps.solarize(image, 128), images))
    assert torch.equal(apply(color.equalize, images), with_pillow(ImageOps.equalize, images))
    difference = apply(color.autocontrast, images).int() - with_pillow(ImageOps.autocontrast, images).int()
    assert int(difference.abs().max()) <= 1


def test_hue_turns_colours_and_keeps_grey():
    images = torch.tensor([200, 80, 80], dtype=torch.uint8).view(1, 3, 1, 1)
    out = apply(color.turn_hue, images, 1 / 3)
    hue, _, _ = colorsys.rgb_to_hsv(*(out.flatten() / 255).tolist())
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.06
    grey = torch.full((1, 3, 2, 2), 90, dtype=torch.uint8)
    assert torch.equal(apply(color.turn_hue, grey, 0.3), grey)
    assert torch.equal(apply(color.turn_hue, make_images(), 0.0), make_images())
    luma = color.luma(out.float()) - color.luma(images.float())
    assert float(luma.abs().max()) < 1.5


def test_jitter_is_its_operations_in_order():
    jitter = ColorJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    images, draws = make_images(8), torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    levels = to_levels(images, 255.0)
    factor = 2 * draws - 1
    levels = color.brightness(levels, 1 + 0.4 * factor[:, 0])
    levels = color.contrast(levels, 1 + 0.3 * factor[:, 1])
    levels = color.saturation(levels, 1 + 0.2 * factor[:, 2])
    levels = color.turn_hue(levels, 0.1 * factor[:, 3])
    difference = jitter(images, draws, 255.0).int() - from_levels(levels, images, 255.0).int()
    assert int(difference.abs().max()) <= 1
    assert torch.equal(ColorJitter(0, 0, 0, 0)(images, draws, 255.0), images)


def test_jitter_of_grey_images_changes_brightness_and_contrast_alone():
    grey = make_images(3, channels=1)
    out = ColorJitter(saturation=0.0)(grey, torch.rand(3, 4), 255.0)
    assert out.shape == grey.shape
    assert not torch.equal(out, grey)
    with pytest.raises(ValueError, match="expected 3 channels to change saturation or hue, got 1"):
        ColorJitter()(grey, torch.rand(3, 4), 255.0)


@pytest.mark.parametrize(
    ("key", "value"), [("brightness", 1.5), ("contrast", -0.1), ("saturation", 2), ("hue", 0.6)]
)
def test_impossible_jitter_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"{key}: got"):
        ColorJitter(**{key: value})


def policy_draws(name, strength, sign, count=4):
    operation = (trivial._OPERATIONS.index(name) + 0.5) / len(trivial._OPERATIONS)
    return torch.tensor([[operation, (strength + 0.5) / 31, 0.25 if sign < 0 else 0.75]]).repeat(count, 1)


@pytest.mark.parametrize(
    ("name", "strength", "sign", "expected"),
    [
        ("identity", 30, 1, lambda image: image),
        ("brightness", 0, 1, lambda image: image),
        ("brightness", 30, -1, lambda image: ImageEnhance.Brightness(image).enhance(0.01)),
        ("contrast", 15, 1, lambda image: ImageEnhance.Contrast(image).enhance(1 + 0.99 / 2)),
        ("posterize", 30, 1, lambda image: ImageOps.posterize(image, 2)),
        ("posterize", 0, 1, lambda image: image),
        ("solarize", 30, 1, ImageOps.invert),
        ("equalize", 3, 1, ImageOps.equalize),
        ("autocontrast", 3, 1, ImageOps.autocontrast),
        ("angle", 20, 1, lambda image: image.rotate(90)),
        ("angle", 20, -1, lambda image: image.rotate(-90)),
        ("right", 30, 1, lambda image: Image.new("RGB", image.size)),
        ("shear_x", 0, 1, lambda image: image),
    ],
)
def test_each_operation_of_the_policy(name, strength, sign, expected):
    images = make_images()
    out = TrivialAugment()(images, policy_draws(name, strength, sign), 255.0)
    assert int((out.int() - with_pillow(expected, images).int()).abs().max()) <= 2


def test_the_policy_uses_every_operation_equally():
    draws = torch.rand(14000, 3, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(trivial.pick(draws[:, 0], 14), minlength=14)
    assert int((counts - 1000).abs().max()) < 120


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("build", [TrivialAugment, lambda: ColorJitter(saturation=0.0)])
def test_an_image_becomes_the_same_pixels_in_any_batch(build, channels, dtype):
    augmentation = build()
    images = make_images(60, channels).to(dtype)
    draws = torch.rand(60, augmentation.num_draws, generator=torch.Generator().manual_seed(1))
    whole = augmentation(images, draws, 255.0)
    assert whole.dtype == dtype
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    for part in order.split(7):
        difference = (
            (augmentation(images[part], draws[part], 255.0).float() - whole[part].float()).abs().max()
        )
        assert float(difference) <= (0 if dtype == torch.uint8 else 1e-3)
    assert torch.equal(images, make_images(60, channels).to(dtype))
