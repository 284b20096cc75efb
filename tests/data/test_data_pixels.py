"""Every mode that Pillow knows comes out in its true range, or is refused by name; nothing turns black in silence."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from compresskd.data.decode import BadImages, Decoder

RAMP = np.linspace(0, 255, 48).round().astype(np.uint8).reshape(6, 8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(images, *, notices=None, **options):
    seen = [] if notices is None else notices
    blocks = Decoder(**options).blocks(
        [[(image, 0) for image in images]], "the train split of X", "train", seen
    )
    return np.concatenate([pixels for pixels, _ in blocks])


def ramp(mode, kind):
    """A grey ramp from black to white in the mode, as it comes back from a file."""
    grey = Image.fromarray(RAMP)
    if mode == "1":
        return grey.point(lambda level: 255 * (level > 127)).convert("1")
    if mode == "LAB":
        profile = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        return ImageCms.applyTransform(grey.convert("RGB"), profile)
    if mode.startswith("I;16"):
        return Image.fromarray(RAMP.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(RAMP.astype(np.int32) * 1000)
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32) / 255)
    return grey.convert("RGB" if mode in ("CMYK", "YCbCr") else mode).convert(mode)


KNOWN = [
    ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("CMYK", "TIFF"),
    ("YCbCr", "TIFF"), ("I;16", "PNG"), ("I;16", "TIFF"), ("L", "PPM"), ("L", "GIF"), ("L", "BMP"), ("RGB", "WEBP"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "kind"), KNOWN)
@pytest.mark.parametrize("channels", [1, 3])
def test_known_modes_go_from_black_to_white(mode, kind, channels):
    pixels = decode([encoded(ramp(mode, kind), kind, **({"lossless": True} if kind == "WEBP" else {}))],
                    channels=channels)  # fmt: skip
    expected = 255 * (RAMP > 127) if mode == "1" else RAMP.astype(int)
    tolerance = 3 if mode in ("YCbCr",) else 0
    assert pixels.shape == (1, channels, 6, 8)
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


def test_sixteen_bits_in_a_portable_map():
    content = b"P5 8 6 65535\n" + (RAMP.astype(">u2") * 257).tobytes()
    np.testing.assert_array_equal(decode([content])[0, 0], RAMP)


@pytest.mark.parametrize(
    ("mode", "kind", "levels", "words"),
    [
        (
            "I",
            "TIFF",
            [0, 255000],
            r"holds 32-bit integers from 0 to 255000, of which nobody knows what is black",
        ),
        (
            "F",
            "TIFF",
            [0, 1],
            r"holds floating-point numbers from 0 to 1, of which nobody knows what is black",
        ),
    ],
)
def test_wide_pixels_take_the_levels_that_they_are_told(mode, kind, levels, words):
    image = encoded(ramp(mode, kind), kind)
    np.testing.assert_array_equal(decode([image], levels=levels)[0, 0], RAMP)
    with pytest.raises(BadImages, match=words + r" and white; write data.levels=\[BLACK,WHITE\]"):
        decode([image])
    with pytest.raises(BadImages, match=r"outside of data.levels=\[0,0.5\]"):
        decode([image], levels=[0, 0.5])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floating_point_images_that_are_not_finite_are_named(value):
    pixels = RAMP.astype(np.float32) / 255
    pixels[2, 3] = value
    with pytest.raises(BadImages, match=r"image 1 holds NaN or inf"):
        decode([encoded(ramp("F", "TIFF"), "TIFF"), encoded(Image.fromarray(pixels), "TIFF")], levels=[0, 1])


def test_twelve_bits_in_sixteen_are_not_taken_for_black():
    image = encoded(Image.fromarray(RAMP.astype(np.uint16) * 16))
    with pytest.raises(
        ValueError, match=r"brightest level of the 16-bit images .* is 4080 of 65535, .*=\[0,4080\]"
    ):
        decode([image])
    np.testing.assert_array_equal(decode([image], levels=[0, 4080])[0, 0], RAMP)
    np.testing.assert_array_equal(
        decode([image], levels=[0, 65535])[0, 0], np.rint(RAMP.astype(int) * 16 / 257)
    )
    bright = encoded(ramp("I;16", "PNG"))
    assert decode([image, bright]).max() == 255


def test_a_mode_without_conversion_is_refused_by_name(monkeypatch):
    """Pillow has learned to convert LAB; earlier versions say that they cannot."""
    image = encoded(ramp("LAB", "TIFF"), "TIFF")
    with contextlib.suppress(BadImages):
        assert np.abs(decode([image], channels=1)[0, 0].astype(int) - RAMP).max() <= 3

    def convert(self, mode):
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(
        BadImages, match=r"image 0 is of mode LAB, which cannot be converted \(.*\); store it in grey"
    ):
        decode([image])


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_what_is_transparent_is_white_and_said(mode):
    """An icon that is drawn by its transparency alone would be black throughout."""
    icon = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    icon.paste((0, 0, 0, 255), (2, 2, 6, 4))
    if mode == "P":
        palette = Image.fromarray(np.where(np.asarray(icon)[..., 3] > 0, 1, 0).astype(np.uint8), "L").convert(
            "P"
        )
        palette.putpalette([0, 0, 0] * 256)
        image = encoded(palette, transparency=0)
    else:
        image = encoded(icon.convert(mode))
    notices = []
    pixels = decode([image], channels=1, notices=notices)
    assert pixels[0, 0, 0, 0] == 255
    assert pixels[0, 0, 3, 4] == 0
    assert [(notice.kind, notice.count) for notice in notices] == [("transparent", 1)]
    assert "transparent in places, which were made white: image 0" in notices[0].text


def test_the_first_of_several_pictures_is_taken_and_said():
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
    notices = []
    for kind in ("GIF", "TIFF"):
        image = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode([image], channels=1, notices=notices)[0, 0], RAMP)
    assert [notice.kind for notice in notices] == ["frames", "frames"]


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_split_of_one_colour_is_refused(level):
    image = encoded(Image.fromarray(np.full((4, 4), level, np.uint8)))
    with pytest.raises(
        ValueError, match=f"every pixel of the train split of X is {level} of 255: there is nothing"
    ):
        decode([image, image])


def test_a_large_image_is_refused_by_its_header():
    image = Image.new("1", (13000, 13000))
    content = encoded(image)
    assert len(content) < 100_000
    words = r"image 1 is more than twice as large as data.max_pixels=50000000 allows"
    with pytest.raises(BadImages, match=words):
        decode([encoded(Image.fromarray(RAMP)), content])
    assert Image.MAX_IMAGE_PIXELS == 89478485
    with pytest.raises(BadImages, match=r"has 8x6 pixels, more than data.max_pixels=47 allows"):
        decode([encoded(Image.fromarray(RAMP))], max_pixels=47)
    assert decode([encoded(Image.fromarray(RAMP))], max_pixels=48).shape == (1, 1, 6, 8)


def mixed(count=60):
    good = encoded(Image.fromarray(RAMP))
    return [b"garbage" if number % 2 else good for number in range(count)]


def test_all_bad_images_are_counted_and_the_first_twenty_named():
    with pytest.raises(BadImages) as raised:
        decode(mixed())
    text = str(raised.value)
    assert text.startswith(
        "30 images of the train split of X cannot be used: image 1 cannot be decoded: it is no"
    )
    assert "image 39 cannot" in text
    assert "image 41 cannot" not in text
    assert text.endswith(
        "; and 10 more; mend or remove what is bad, or write data.skip_bad=true to leave it out"
    )


def test_bad_images_are_left_out_counted_and_kept_where_asked():
    notices = []
    images = [None, *mixed()]
    pixels = decode(images, skip_bad=True, notices=notices)
    assert len(pixels) == 30
    (notice,) = notices
    assert (notice.kind, notice.split, notice.count, len(notice.examples)) == ("skipped", "train", 31, 20)
    assert notice.examples[0] == "image 0 is null"
    with pytest.raises(BadImages, match="3 images of the train split of X cannot be used"):
        decode([b"", b"x", None], skip_bad=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": [1]}, r"levels: got \[1\], expected"),
        ({"levels": [5, 5]}, r"levels: got \[5, 5\], expected"),
        ({"levels": [0, float("nan")]}, r"levels: got \[0, nan\], expected"),
        ({"max_pixels": 0}, "max_pixels: got 0, expected >= 1"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Decoder(**options)
