"""Encoded images to uint8 arrays of one shape."""

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Images per task: small ones decode faster than a thread takes up a task.
_CHUNK = 64


@dataclass(frozen=True)
class Decoder:
    """Images to uint8 [C, H, W].

    size: side of the square that every image is resized to, its shorter side first and then cropped in the
    centre; None keeps the size, which must then be the same for all. channels: 1 (grey) or 3 (RGB); None takes
    those of the first image, and refuses a coloured one where the first was grey.
    """

    size: int | None = None
    channels: int | None = None

    def __post_init__(self):
        if self.size is not None and self.size < 1:
            raise ValueError(f"data.size: expected null or 1 or more pixels, got {self.size}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"data.channels: expected null, 1 (grey) or 3 (RGB), got {self.channels}")

    def blocks(
        self, items: Iterable[list[tuple[bytes | Path, int]]], where: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode lists of (encoded image or its file, label) to (uint8 [n, C, H, W], int64 [n]), in order.

        Threads decode: the image libraries let go of the interpreter. Raises ValueError, with the position of
        the image and `where`, for one that cannot be read or does not look like the first.
        """
        position, channels, shape = 0, self.channels, None
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for block in items:
                encoded = [image for image, _ in block]
                places = [f"image {position + offset} of {where}" for offset in range(len(block))]
                channels = channels or _channels(_open(encoded[0], places[0]))
                parts = [slice(start, start + _CHUNK) for start in range(0, len(block), _CHUNK)]
                tasks = [pool.submit(self._decode, encoded[part], places[part], channels) for part in parts]
                images = [image for task in tasks for image in task.result()]
                shape = shape or images[0].shape
                _check_shapes(images, places, shape)
                yield np.stack(images), np.array([label for _, label in block], dtype=np.int64)
                position += len(block)

    def _decode(self, encoded: list[bytes | Path], places: list[str], channels: int) -> list[np.ndarray]:
        return [self._pixels(_open(*one), one[1], channels) for one in zip(encoded, places, strict=True)]

    def _pixels(self, image: Image.Image, place: str, channels: int) -> np.ndarray:
        """Uint8 [channels, H, W]."""
        if channels < _channels(image) and self.channels is None:
            raise ValueError(
                f"{place} has colours, the first one is grey; write data.channels=3 or data.channels=1 to make "
                f"all of them alike"
            )
        image = _as_mode(image, "L" if channels == 1 else "RGB")
        if self.size is not None and image.size != (self.size, self.size):
            image = ImageOps.fit(image, (self.size, self.size), method=Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _open(encoded: bytes | Path, place: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        file = f" ({encoded})" if isinstance(encoded, Path) else ""
        raise ValueError(
            f"{place}{file} cannot be decoded: {type(error).__name__}: {error}; replace or remove it"
        ) from error
    return image


def _check_shapes(images: list[np.ndarray], places: list[str], shape: tuple[int, ...]) -> None:
    for image, place in zip(images, places, strict=True):
        if image.shape != shape:
            raise ValueError(
                f"{place} is {image.shape[1]}x{image.shape[2]} pixels, the first one {shape[1]}x{shape[2]}; "
                f"write data.size=PIXELS to resize all of them (for example data.size={min(shape[1:])})"
            )


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16") else 3


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # A plain conversion would clip 16-bit levels at 255.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert(mode)
