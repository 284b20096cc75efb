"""One encoded image to uint8 pixels: every mode by its true range, or refused with the reason."""

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from compresskd.options import OptionError

Encoded = bytes | Path | None

_16_BITS = (0, 65535)


class BadImage(ValueError):
    """An image that cannot be used; the message goes on from its name ("cannot be decoded: ...")."""


@dataclass(frozen=True)
class Decoded:
    """Pixels, uint8 [C, H, W], and what was seen on the way.

    `transparent`: something showed through, which is white now. `more_frames`: only the first of several was taken.
    `brightest`: the highest level of an image of 16 bits, else None.
    """

    pixels: np.ndarray
    transparent: bool
    more_frames: bool
    brightest: int | None


def opened(encoded: Encoded, max_pixels: int) -> Image.Image:
    """The image, decoded. Raises BadImage for what is no image, or is of more than `max_pixels` by its header."""
    try:
        if encoded is None:
            raise BadImage("is null")
        if isinstance(encoded, Path):
            _check_regular(encoded)
        image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
        if image.width * image.height > max_pixels:
            raise BadImage(
                f"has {image.width}x{image.height} pixels, more than data.max_pixels={max_pixels} allows"
            )
        image.load()
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("cannot be decoded: it is no image of a known kind") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"is more than twice as large as data.max_pixels={max_pixels} allows") from error
    except Exception as error:  # a damaged file makes the decoders of images raise what they like
        raise BadImage(f"cannot be decoded: {type(error).__name__}: {error}") from error
    return image


def decoded(image: Image.Image, channels: int, size: int | None, levels: Sequence[float] | None) -> Decoded:
    """Pixels of `channels` (1 or 3), resized and cropped to `size` x `size` unless it is None.

    `levels` are black and white of images with more than 8 bits; None knows them of 16 bits alone.
    Raises BadImage for levels that are not known, not finite or out of range, and modes that have no conversion.
    """
    try:
        more_frames = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        brightest, transparent = None, False
        if is_deep(image):
            image, brightest = _to_8_bits(image, levels)
        else:
            image, transparent = _on_white(image)
        image = image if image.mode == (mode := "L" if channels == 1 else "RGB") else image.convert(mode)
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(
            f"is of mode {image.mode}, which cannot be converted ({error}); store it in grey or RGB"
        ) from error
    pixels = np.asarray(image)
    pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return Decoded(pixels, transparent, more_frames, brightest)


def channels_of(image: Image.Image) -> int:
    """1 for grey, 3 for what may have colours."""
    return 1 if image.mode in ("1", "L", "LA", "La") or is_deep(image) else 3


def is_deep(image: Image.Image) -> bool:
    """Whether a pixel takes more than 8 bits, so that its white must be known."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def check_levels(levels: Sequence[float] | None) -> None:
    """Raise ValueError unless they are black and white, in this order."""
    if levels is not None and not (len(levels) == 2 and -np.inf < levels[0] < levels[1] < np.inf):
        raise OptionError("levels", levels, "null or [BLACK,WHITE], two rising numbers, [0,4095] for 12 bits")


def _check_regular(file: Path) -> None:
    """Opening a pipe or a device may wait for ever."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        if file.is_symlink():
            raise BadImage(
                f"is a link to {os.readlink(file)}, which cannot be read ({error.strerror})"
            ) from error
        raise BadImage(f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise BadImage("is no regular file")


def _to_8_bits(image: Image.Image, levels: Sequence[float] | None) -> tuple[Image.Image, int | None]:
    """Grey of 8 bits, and the brightest level where 16 bits were taken for granted."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise BadImage("holds NaN or inf")
    low, high = values.min().item(), values.max().item()
    # Pillow reads some files of 16 bits as integers of 32.
    assumed = levels is None and (image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM")))
    black, white = _16_BITS if assumed else levels or (0, 0)
    if black == white:
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise BadImage(
            f"holds {kind} from {low:g} to {high:g}, of which nobody knows what is black and white; write "
            f"data.levels=[BLACK,WHITE]"
        )
    if low < black or high > white:
        raise BadImage(f"holds levels from {low:g} to {high:g}, outside of data.levels=[{black:g},{white:g}]")
    scaled = np.rint((values.astype(np.float64) - black) * (255 / (white - black)))
    return Image.fromarray(scaled.astype(np.uint8)), int(high) if assumed else None


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """As it is seen on paper, and whether anything showed through: what a transparent pixel hides is arbitrary."""
    if not image.has_transparency_data:
        return image, False
    visible = image.convert("RGBA")
    if visible.getchannel("A").getextrema()[0] == 255:
        return image, False
    return Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible), True
