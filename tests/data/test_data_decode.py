import numpy as np
import pytest
from PIL import Image

from compresskd.data.decode import Decoder


def decode(encoded, *, block=3, notices=None, **options):
    items = [(image, number) for number, image in enumerate(encoded)]
    parts = [items[start : start + block] for start in range(0, len(items), block)]
    seen = [] if notices is None else notices
    blocks = list(Decoder(**options).blocks(parts, "the train split of X", "train", seen))
    return np.concatenate([pixels for pixels, _ in blocks]), np.concatenate([labels for _, labels in blocks])


def test_grey_and_colour_images_come_back_exactly_and_in_order(draw, encode):
    grey, colour = draw(200), draw(7, (6, 5, 3))
    pixels, labels = decode([encode(image) for image in grey], block=150)
    np.testing.assert_array_equal(pixels, grey[:, None])
    np.testing.assert_array_equal(labels, np.arange(200))
    pixels, _ = decode([encode(image) for image in colour])
    np.testing.assert_array_equal(pixels, colour.transpose(0, 3, 1, 2))
    assert pixels.dtype == np.uint8


def test_files_are_read_too(tmp_path, draw, encode):
    (image,) = draw(1)
    (tmp_path / "one.png").write_bytes(encode(image))
    np.testing.assert_array_equal(decode([tmp_path / "one.png"])[0][0, 0], image)


def test_channels_are_converted_where_asked(draw, encode):
    grey, colour = draw(1)[0], draw(1, (6, 5, 3))[0]
    pixels, _ = decode([encode(grey), encode(colour)], channels=3)
    np.testing.assert_array_equal(pixels[0], np.stack([grey] * 3))
    np.testing.assert_array_equal(pixels[1], colour.transpose(2, 0, 1))
    pixels, _ = decode([encode(colour)], channels=1)
    assert pixels.shape == (1, 1, 6, 5)
    pixels, _ = decode([encode(colour), encode(grey)])
    np.testing.assert_array_equal(pixels[1], np.stack([grey] * 3))


def test_sixteen_bit_levels_are_scaled_and_not_clipped(encode):
    levels = np.array([[0, 255, 256], [4096, 32768, 65535]], dtype=np.uint16)
    pixels, _ = decode([encode(levels)])
    np.testing.assert_array_equal(pixels[0, 0], np.rint(levels / 257))


def test_images_of_any_size_become_squares(draw, encode):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    pixels, _ = decode([encode(wide), encode(draw(1, (7, 9))[0])], size=5)
    assert pixels.shape == (2, 1, 5, 5)
    # The shorter side decides the scale, the centre is kept.
    assert (pixels[0, 0, :, 1:4] == 255).all()
    assert (pixels[0] > 200).all()


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (
            [(6, 5), (6, 5), (6, 5), (7, 5)],
            {},
            "image 3 of the train split of X is 7x5 pixels, the first one 6x5; w",
        ),
        (
            [(6, 5), (6, 5, 3)],
            {},
            "image 1 of the train split of X has colours, the first one is grey; write data.c",
        ),
    ],
)
def test_images_unlike_the_first_are_named(images, options, words, draw, encode):
    with pytest.raises(ValueError, match=words):
        decode([encode(draw(1, shape)[0]) for shape in images], **options)


@pytest.mark.parametrize("damage", [lambda data: b"no image", lambda data: data[:40], lambda data: b""])
def test_an_unreadable_image_is_named(damage, draw, encode, tmp_path):
    encoded = [encode(image) for image in draw(5)]
    encoded[4] = damage(encoded[4])
    with pytest.raises(
        ValueError,
        match=r"^1 image of the train split of X cannot be used: image 4 cannot be decoded: .*; mend",
    ):
        decode(encoded)
    (tmp_path / "four.png").write_bytes(encoded[4])
    with pytest.raises(
        ValueError,
        match=r"^1 image of the train split of X cannot be used: image 0 \(.*four.png\) cannot be d",
    ):
        decode([tmp_path / "four.png"])


def test_palette_and_transparent_images_are_converted(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    for mode in ("P", "RGBA"):
        Image.fromarray(colours).convert(mode).save(tmp_path / f"{mode}.png")
        pixels, _ = decode([tmp_path / f"{mode}.png"])
        np.testing.assert_array_equal(pixels[0], colours.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size: got 0, expected >= 1 pixel, or null"),
        ({"channels": 2}, r"channels: got 2, expected 1 \(grey\), 3 \(RGB\) or null"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Decoder(**options)
