"""Encoded images to uint8 arrays of one shape."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from compresskd.data.notice import Notice, listed, shown
from compresskd.data.pixels import (
    BadImage,
    Decoded,
    Encoded,
    channels_of,
    check_levels,
    decoded,
    opened,
)
from compresskd.options import OptionError

# Images per task: small ones decode faster than a thread takes up a task.
_CHUNK = 64
_DARK = 65535 // 8
_MAX_PIXELS = 50_000_000


class BadImages(ValueError):
    """Images of one split that cannot be used, the first 20 named."""


@dataclass(frozen=True)
class Decoder:
    """Images to uint8 [C, H, W].

    size: side of the square that every image is resized to, its shorter side first and then cropped in the
    centre; None keeps the size, which must then be the same for all. channels: 1 (grey) or 3 (RGB); None takes
    those of the first image, and refuses a coloured one where the first was grey. levels: black and white of images
    with more than 8 bits; None knows those of 16 bits. max_pixels: larger images are bad by their header; None stands
    for 50 million.
    skip_bad: leaves bad images out instead of refusing the set.
    """

    size: int | None = None
    channels: int | None = None
    levels: Sequence[float] | None = None
    max_pixels: int | None = None
    skip_bad: bool = False

    def __post_init__(self):
        if self.size is not None and self.size < 1:
            raise OptionError("size", self.size, ">= 1 pixel, or null")
        if self.channels not in (None, 1, 3):
            raise OptionError("channels", self.channels, "1 (grey), 3 (RGB) or null")
        if self._most < 1:
            raise OptionError("max_pixels", self.max_pixels, ">= 1")
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(self.levels))
        check_levels(self.levels)

    @property
    def _most(self) -> int:
        return _MAX_PIXELS if self.max_pixels is None else self.max_pixels

    def blocks(
        self, items: Iterable[list[tuple[Encoded, int]]], where: str, split: str, notices: list[Notice]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode lists of (encoded image or its file, label) to (uint8 [n, C, H, W], int64 [n]), in order.

        Threads decode: the image libraries let go of the interpreter. At the end `notices` has what was seen.
        Raises BadImages, when all have been looked at, for those that cannot be used; ValueError, with the number of
        the image and `where`, for one that does not look like the first.
        """
        seen, position, channels, shape = _Seen(where, split), 0, self.channels, None
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for block in items:
                encoded = [image for image, _ in block]
                with _limit(self._most):
                    channels = channels or self._first_channels(encoded)
                    parts = [encoded[start : start + _CHUNK] for start in range(0, len(block), _CHUNK)]
                    tasks = [pool.submit(self._decode, part, channels or 3) for part in parts]
                    results = [result for task in tasks for result in task.result()]
                kept = seen.take(results, encoded, position)
                images = [image.pixels for _, image in kept]
                places = [f"image {position + offset} of {where}" for offset, _ in kept]
                shape = shape or (images[0].shape if images else None)
                _check_shapes(images, places, shape)
                position += len(block)
                if images and (self.skip_bad or not seen.bad):
                    pixels = np.stack(images)
                    seen.widen(pixels)
                    yield pixels, np.array([block[offset][1] for offset, _ in kept], dtype=np.int64)
        seen.refuse(skip_bad=self.skip_bad)
        notices += seen.notices()

    def _first_channels(self, encoded: Sequence[Encoded]) -> int | None:
        """Of the first image that can be opened."""
        for one in encoded:
            try:
                return channels_of(opened(one, self._most))
            except BadImage:
                continue
        return None

    def _decode(self, encoded: Sequence[Encoded], channels: int) -> list[Decoded | BadImage | ValueError]:
        return [self._one(image, channels) for image in encoded]

    def _one(self, encoded: Encoded, channels: int) -> Decoded | BadImage | ValueError:
        try:
            image = opened(encoded, self._most)
            if channels < channels_of(image) and self.channels is None:
                return ValueError(
                    "has colours, the first one is grey; write data.channels=3 or data.channels=1 to make all of "
                    "them alike"
                )
            return decoded(image, channels, self.size, self.levels)
        except BadImage as error:
            return error


@dataclass
class _Seen:
    """What was seen of one split so far."""

    where: str
    split: str
    bad: list[str] = field(default_factory=list)
    transparent: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    brightest: int | None = None
    any_good: bool = False
    extremes: tuple[int, int] = (255, 0)

    def take(
        self, results: Sequence[Decoded | BadImage | ValueError], encoded: Sequence[Encoded], position: int
    ) -> list[tuple[int, Decoded]]:
        """The good ones with their place in the block."""
        kept = []
        for offset, result in enumerate(results):
            name = _name(position + offset, encoded[offset])
            if isinstance(result, BadImage):
                self.bad.append(f"{name} {result}")
            elif isinstance(result, ValueError):
                raise ValueError(f"image {position + offset} of {self.where} {result}")
            else:
                kept.append((offset, result))
                self._look(result, name)
        return kept

    def _look(self, image: Decoded, name: str) -> None:
        if image.transparent:
            self.transparent.append(name)
        if image.more_frames:
            self.frames.append(name)
        if image.brightest is not None:
            self.brightest = max(self.brightest or 0, image.brightest)

    def widen(self, pixels: np.ndarray) -> None:
        """Take in the darkest and brightest of a block."""
        low, high = self.extremes
        self.extremes, self.any_good = (min(low, int(pixels.min())), max(high, int(pixels.max()))), True

    def refuse(self, *, skip_bad: bool) -> None:
        """Raise BadImages or ValueError where the split cannot be used."""
        if self.bad and not (skip_bad and self.any_good):
            raise BadImages(
                f"{_count(self.bad)} of {self.where} cannot be used: {listed(self.bad)}; mend or remove what is bad, "
                f"or write data.skip_bad=true to leave it out"
            )
        low, high = self.extremes
        if low == high:
            raise ValueError(
                f"every pixel of {self.where} is {low} of 255: there is nothing to be learned from it"
            )
        if self.brightest is not None and self.brightest <= _DARK:
            raise ValueError(
                f"the brightest level of the 16-bit images of {self.where} is {self.brightest} of 65535, nearly black; "
                f"write data.levels=[0,{self.brightest}], or data.levels=[0,65535] to take them as they are"
            )

    def notices(self) -> Iterator[Notice]:
        """For the user and the record."""
        for kind, found, text in (
            ("skipped", self.bad, "which cannot be used, left out (data.skip_bad)"),
            ("transparent", self.transparent, "transparent in places, which were made white"),
            ("frames", self.frames, "of several pictures, of which the first was taken"),
        ):
            if found:
                some = "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
                yield Notice.of(kind, self.split, found, f"{_count(found)} of {self.where}, {text}: {some}")


def _count(found: Sequence[str]) -> str:
    return f"{len(found):,} image{'' if len(found) == 1 else 's'}"


def _name(position: int, encoded: Encoded) -> str:
    return f"image {position}" + (f" ({shown(encoded)})" if isinstance(encoded, os.PathLike) else "")


@contextmanager
def _limit(max_pixels: int) -> Iterator[None]:
    """Pillow's own limit at ours: it refuses twice as many, in pictures within pictures too, and need not warn."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_shapes(images: list[np.ndarray], places: list[str], shape: tuple[int, ...] | None) -> None:
    for image, place in zip(images, places, strict=True):
        if shape is not None and image.shape != shape:
            raise ValueError(
                f"{place} is {image.shape[1]}x{image.shape[2]} pixels, the first one {shape[1]}x{shape[2]}; "
                f"write data.size=PIXELS to resize all of them (for example data.size={min(shape[1:])})"
            )
