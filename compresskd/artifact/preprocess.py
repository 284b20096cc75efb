"""From raw samples to what a model takes, by what its file says of the data that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresskd.tasks import Inputs


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing that travels with a model: called with raw samples, it gives the inputs of one batch.

    Attributes:
        about: what the model file says: `preprocessing` of texts and tables; `input_shape`, `mean`, `std` of images.
    """

    about: Mapping[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        """What it takes: "text", "tokens" or "text_blocks", "table", or "images"."""
        return self.about.get("preprocessing", {}).get("kind", "images")

    def __call__(self, samples: Any, pairs: Sequence[str] | None = None) -> Inputs:
        """The inputs of a batch.

        Args:
            samples: texts, or lists of words; columns of a table by name; or images: paths, PIL images, or arrays
                [H, W] or [H, W, C] of bytes 0..255 or floats 0..1. Images of another size are resized.
            pairs: second texts, where the model was trained with them.

        Raises:
            ValueError: samples that are none of these, or none that the model was trained with.
        """
        preprocessing = self.about.get("preprocessing", {})
        if self.kind == "images":
            return self._images(samples)
        if self.kind == "table":
            from compresskd.data.table.encode import inputs_of as of_table

            return torch.from_numpy(of_table(preprocessing, samples))
        from compresskd.data.text.preprocess import inputs_of as of_texts

        return of_texts(preprocessing, samples, pairs)

    def _images(self, samples: Sequence[Any]) -> Tensor:
        shape, mean, std = (self.about.get(key) for key in ("input_shape", "mean", "std"))
        if not shape or mean is None or std is None:
            raise ValueError("the model's file does not say how its inputs were made")
        if len(samples) == 0:
            raise ValueError("expected one sample or more")
        pixels = torch.stack([_pixels(sample, shape) for sample in samples])
        extent = [1, -1, *[1] * (len(shape) - 1)]
        return (pixels - torch.tensor(mean).reshape(extent)) / torch.tensor(std).reshape(extent)


def _pixels(sample: Any, shape: Sequence[int]) -> Tensor:
    """[C, H, W] or [F] float32 in 0..1 of one image."""
    if isinstance(sample, str | Path):
        from PIL import Image

        with Image.open(sample) as image:
            image.load()
            sample = image
    if hasattr(sample, "convert"):
        sample = _of_size(sample, shape)
    values = torch.from_numpy(np.array(sample))
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if len(shape) == 3 and values.ndim == 2:
        values = values[None]
    elif len(shape) == 3 and values.ndim == 3 and list(values.shape) != list(shape):
        values = values.permute(2, 0, 1)
    if list(values.shape) != list(shape):
        raise ValueError(f"expected a sample of shape {list(shape)}, got {list(values.shape)}")
    return values


def _of_size(image: Any, shape: Sequence[int]) -> Any:
    if len(shape) != 3:
        raise ValueError(f"expected samples of shape {list(shape)}, got an image")
    channels, height, width = shape
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}.get(channels, "RGB"))
    return image if image.size == (width, height) else image.resize((width, height))
