"""Small image sets on disk."""

import io
import os

import numpy as np
import pytest
from PIL import Image

# Read by the library at its import: no test asks the hub.
os.environ["HF_HUB_OFFLINE"] = "1"


def _encode(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _draw(count, shape=(6, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def encode():
    """A function: uint8 [H, W] or [H, W, 3] to the bytes of an image file."""
    return _encode


@pytest.fixture
def draw():
    """A function: count, shape and seed to uint8 [count, *shape]."""
    return _draw


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """Decoded images of a test stay in its folder."""
    monkeypatch.setenv("COMPRESSKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def class_folders(tmp_path):
    """ROOT with train and test of the classes ant and bee, ten and four grey images each, and their pixels."""
    root, pixels = tmp_path / "insects", {}
    for split, count, seed in (("train", 10, 0), ("test", 4, 1)):
        pixels[split] = _draw(2 * count, seed=seed)
        for number, image in enumerate(pixels[split]):
            folder = root / split / ("ant" if number < count else "bee")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03}.png").write_bytes(_encode(image))
    return root, pixels
