"""Images in one folder per class: ROOT/train/CLASS/*.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from compresskd.data.assemble import Options
from compresskd.data.base import Data
from compresskd.data.cache import Cache
from compresskd.data.decode import Decoder
from compresskd.data.digest import files_digest
from compresskd.data.images import Encoded, assemble_images

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
_BLOCK = 256


def image_folder(
    *,
    name: str,
    path: str | None,
    size: int | None,
    channels: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    test_fraction: float | None,
    cache_dir: str | None,
    max_in_memory_bytes: int,
    **options: Unpack[Options],
) -> Data:
    """Classes are the folders of PATH/train, in the order of their names; images may lie deeper.

    PATH/val and PATH/test are used where they are there, and otherwise cut from train by the fractions, which are
    for that case alone. Raises FileNotFoundError and ValueError for folders that do not look like this.
    """
    decoder, cache = Decoder(size, channels), Cache.at(cache_dir, max_in_memory_bytes)
    root = _root(path)
    splits = {
        split: root / folder
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
        if (root / folder).is_dir()
    }
    if "validation" in splits:
        options = Options(**{**options, "validation_fraction": None, "validation_count": None})
    class_names = tuple(sorted(folder.name for folder in _folders(splits["train"])))
    items = {split: _items(folder, class_names) for split, folder in splits.items()}
    files = sorted(file for split in items.values() for file, _ in split)
    return assemble_images(
        name,
        str(root),
        files_digest(root, files),
        {split: (lambda found=found: Encoded(class_names, _blocks(found))) for split, found in items.items()},
        decoder=decoder,
        cache=cache,
        mean=mean,
        std=std,
        test_fraction=None if "test" in splits else test_fraction,
        **options,
    )


def _root(path: str | None) -> Path:
    if path is None:
        raise ValueError("data.path: expected a folder with train/CLASS/*.png in it; write data.path=DIR")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.path: the folder {root} is not there; write data.path=DIR, with DIR/train/CLASS/*.png in it"
        )
    if not (root / "train").is_dir():
        found = [folder.name for folder in _folders(root)][:5]
        raise FileNotFoundError(
            f"data.path: expected {root}/train/CLASS/*.png, got the folders {found} in {root}; write data.path=DIR, "
            f"with DIR/train in it"
        )
    return root


def _folders(parent: Path) -> list[Path]:
    return sorted(child for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))


def _items(folder: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Files and labels of one split, by class and name."""
    if not class_names:
        raise ValueError(f"data.path: expected a folder for each class in {folder}, got none")
    items = []
    for child in _folders(folder):
        if child.name not in class_names:
            raise ValueError(
                f"data.path: {child} is a class that train does not have; its classes are {list(class_names)[:10]}"
            )
        files = sorted(file for file in child.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise ValueError(
                f"data.path: expected images ({', '.join(sorted(_SUFFIXES))}) in {child}, got none; add some, or "
                f"remove the folder"
            )
        items += [(file, class_names.index(child.name)) for file in files]
    return items


def _blocks(items: list[tuple[Path, int]]) -> list[list[tuple[bytes | Path, int]]]:
    return [[*items[start : start + _BLOCK]] for start in range(0, len(items), _BLOCK)]
