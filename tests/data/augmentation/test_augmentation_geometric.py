"""Crop, flip, blanked rectangles and affine maps against loops over pixels."""

import math

import numpy as np
import pytest
import torch

from compresskd.data.augmentation import (
    Compose,
    Cutout,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomErasing,
)
from compresskd.data.augmentation.affine import warp


def make_images(count=40, channels=3, height=7, width=5, dtype=torch.uint8):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, height, width), generator=rng)
    return pixels.to(dtype)


def make_draws(augmentation, count=40, seed=0):
    return torch.rand(count, augmentation.num_draws, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_against_a_loop(dtype):
    crop = RandomCrop(padding=2, fill=0.2)
    images, draws = make_images(dtype=dtype), make_draws(crop)
    out = crop(images, draws, 255.0)
    padded = np.full((40, 3, 11, 9), 51, dtype=np.float64)
    padded[:, :, 2:-2, 2:-2] = images.numpy()
    seen = set()
    for image in range(40):
        top, left = (int(draws[image, axis] * 5) for axis in (0, 1))
        seen.add((top, left))
        np.testing.assert_allclose(
            out[image].numpy(), padded[image, :, top : top + 7, left : left + 5], atol=1e-4
        )
    assert out.dtype == dtype
    assert len(seen) > 15


def test_crop_at_the_ends_of_the_draws():
    images = make_images(2)
    crop = RandomCrop(padding=1)
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    first, last = crop(images, torch.tensor([[0.0, 0.0], [below_one] * 2]), 255.0)
    assert torch.equal(first[:, 1:, 1:], images[0, :, :-1, :-1])
    assert int(first[:, 0].sum()) == 0
    assert torch.equal(last[:, :-1, :-1], images[1, :, 1:, 1:])
    unchanged = crop(images, torch.full((2, 2), 0.5), 255.0)
    assert torch.equal(unchanged, images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_against_a_loop(dtype):
    flip = HorizontalFlip(probability=0.3)
    images, draws = make_images(200, dtype=dtype), make_draws(flip, 200)
    out = flip(images, draws, 255.0)
    flipped = 0
    for image in range(200):
        expected = images[image]
        if draws[image, 0] < 0.3:
            expected, flipped = expected.flip(-1), flipped + 1
        assert torch.equal(out[image], expected)
    assert 35 < flipped < 85
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_against_a_loop(dtype):
    cutout = Cutout(size=3, fill=1.0)
    images, draws = make_images(dtype=dtype), make_draws(cutout)
    out = cutout(images, draws, 255.0)
    for image in range(40):
        row, column = int(draws[image, 0] * 7), int(draws[image, 1] * 5)
        expected = images[image].clone()
        for i in range(7):
            for j in range(5):
                if abs(i - row) <= 1 and abs(j - column) <= 1:
                    expected[:, i, j] = 255
        assert torch.equal(out[image], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_erasing_blanks_one_rectangle_of_the_area_asked_for(dtype):
    erasing = RandomErasing(probability=0.6, area=(0.1, 0.2), ratio=(0.5, 2.0))
    images = make_images(300, 1, 20, 30, dtype).clamp(min=1)
    draws = make_draws(erasing, 300)
    out = erasing(images, draws, 255.0)
    for image in range(300):
        rows, columns = np.nonzero((out[image, 0] == 0).numpy())
        if draws[image, 0] >= 0.6:
            assert torch.equal(out[image], images[image])
            continue
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        area = 0.1 + 0.1 * float(draws[image, 1])
        ratio = 0.5 * 4.0 ** float(draws[image, 2])
        assert height == round(math.sqrt(area * 600 * ratio))
        assert width == round(math.sqrt(area * 600 / ratio))
        kept = out[image, 0] != 0
        assert torch.equal(out[image, 0][kept], images[image, 0][kept])


def identity(count=1, **changes):
    values = {
        "angle": 0.0,
        "down": 0.0,
        "right": 0.0,
        "scale": 1.0,
        "shear_x": 0.0,
        "shear_y": 0.0,
        **changes,
    }
    return {key: torch.full((count,), float(value)) for key, value in values.items()}


def test_affine_maps_with_a_known_answer():
    images = make_images(1, 3, 6, 6)
    assert torch.equal(warp(images, **identity(), pixel_max=255.0), images)
    shifted = warp(images, **identity(down=2, right=-1), pixel_max=255.0)
    assert torch.equal(shifted[..., 2:, :-1], images[..., :-2, 1:])
    assert int(shifted[..., :2, :].sum()) == int(shifted[..., -1].sum()) == 0
    turned = warp(images, **identity(angle=math.pi / 2), pixel_max=255.0)
    assert torch.equal(turned, torch.rot90(images, 1, (2, 3)))
    larger = warp(make_images(1, 1, 4, 4), **identity(scale=2.0), pixel_max=255.0)
    assert float(larger.float().std()) < float(make_images(1, 1, 4, 4).float().std())


def test_affine_maps_against_a_loop():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((6, 2, 9, 8), dtype=np.float32))
    angle, scale, shear_x, shear_y = (
        rng.uniform(-1, 1, 6),
        rng.uniform(0.7, 1.4, 6),
        *rng.uniform(-0.4, 0.4, (2, 6)),
    )
    down, right = rng.uniform(-2, 2, (2, 6))
    arguments = {
        "angle": angle,
        "down": down,
        "right": right,
        "scale": scale,
        "shear_x": shear_x,
        "shear_y": shear_y,
    }
    out = warp(
        images, **{key: torch.from_numpy(value).float() for key, value in arguments.items()}, pixel_max=1.0
    )
    for n in range(6):
        cos, sin = math.cos(angle[n]), math.sin(angle[n])
        forward = (
            np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, shear_x[n]], [shear_y[n], 1]]) * scale[n]
        )
        backward = np.linalg.inv(forward)
        for i in range(9):
            for j in range(8):
                x, y = backward @ np.array([j - 3.5 - right[n], i - 4.0 - down[n]]) + np.array([3.5, 4.0])
                expected = np.zeros(2)
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < 9 and 0 <= column < 8:
                            weight = (1 - abs(y - row)) * (1 - abs(x - column))
                            expected += weight * images[n, :, row, column].numpy()
                np.testing.assert_allclose(out[n, :, i, j].numpy(), expected, atol=2e-5)


def test_random_affine_stays_within_its_ranges():
    images = torch.zeros(400, 1, 21, 21)
    images[:, :, 10, 10] = 1.0
    affine = RandomAffine(degrees=180.0, translate=0.2, scale=(1.0, 1.0))
    out = affine(images, make_draws(affine, 400), 1.0)[:, 0]
    mass = out.sum((1, 2))
    rows = (out.sum(2) * torch.arange(21)).sum(1) / mass - 10
    columns = (out.sum(1) * torch.arange(21)).sum(1) / mass - 10
    for moved in (rows, columns):
        assert float(moved.abs().max()) < 4.2 + 0.1
        assert float(moved.std()) == pytest.approx(4.2 * 2 / math.sqrt(12), rel=0.1)


def test_compose_gives_each_operation_its_own_draws():
    crop, flip = RandomCrop(padding=2), HorizontalFlip()
    both = Compose({"crop": crop, "flip": flip})
    images, draws = make_images(), make_draws(both)
    assert both.num_draws == 3
    assert torch.equal(
        both(images, draws, 255.0), flip(crop(images, draws[:, :2], 255.0), draws[:, 2:], 255.0)
    )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RandomCrop(padding=0), "padding: got 0, expected >= 1"),
        (lambda: RandomCrop(fill=2), "fill: got 2, expected <= 1"),
        (lambda: HorizontalFlip(probability=1.5), r"probability: got 1\.5, expected <= 1"),
        (lambda: Cutout(size=0), "size: got 0, expected >= 1"),
        (lambda: Cutout(fill=-1), "fill: got -1, expected >= 0"),
        (lambda: RandomErasing(probability=0), "probability: got 0, expected > 0"),
        (lambda: RandomErasing(area=(0.5, 0.2)), r"area: got \[0\.5, 0\.2\], expected \[LOW, HIGH\]"),
        (lambda: RandomErasing(ratio=(0.0, 2.0)), r"ratio\[0\]: got 0\.0, expected > 0"),
        (lambda: RandomErasing(fill=3), "fill: got 3, expected <= 1"),
        (lambda: RandomAffine(degrees=181), "degrees: got 181, expected <= 180"),
        (lambda: RandomAffine(translate=1), "translate: got 1, expected < 1"),
        (lambda: RandomAffine(scale=(0, 1)), r"scale\[0\]: got 0, expected > 0"),
        (lambda: RandomAffine(shear=90), "shear: got 90, expected < 90"),
        (lambda: Compose({}), r"operations: got \{\}, expected 1 or more of them"),
    ],
)
def test_impossible_options_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
