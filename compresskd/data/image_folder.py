"""Images in one folder per class: ROOT/train/CLASS/*.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from compresskd.data.assemble import Options
from compresskd.data.base import Data
from compresskd.data.cache import Cache
from compresskd.data.decode import Decoder
from compresskd.data.digest import files_digest
from compresskd.data.images import Encoded, assemble_images, blocks_of
from compresskd.data.notice import Notice, shown
from compresskd.data.tree import SUFFIXES, Findings, alike, class_files, folders, plain
from compresskd.options import OptionError

_SPLITS = {"train": "train", "validation": "val", "test": "test"}
# Folders of which someone meant a split: they are no classes.
_LIKE_SPLITS = (
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
)


def image_folder(
    *,
    name: str,
    path: str | None,
    size: int | None,
    channels: int | None,
    levels: Sequence[float] | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    test_fraction: float | None,
    cache_dir: str | None,
    max_in_memory_bytes: int,
    unlabelled_path: str | None = None,
    **options: Unpack[Options],
) -> Data:
    """Classes are the folders of PATH/train, in the order of their names; images may lie deeper.

    PATH/val and PATH/test are used where they are there, and otherwise cut from train by the fractions, which are
    for that case alone. Without PATH/train the folders of PATH itself are the classes, and both are cut.
    Raises FileNotFoundError and ValueError for folders that do not look like this, and BadImages.
    """
    decoder = Decoder(size, channels, levels, max_pixels, skip_bad)
    cache = Cache.at(cache_dir, max_in_memory_bytes)
    root = _root(path)
    splits, notices = _splits(root)
    if "validation" in splits:
        options = Options(**{**options, "validation_fraction": None, "validation_count": None})
    class_names = tuple(sorted(folder.name for folder in folders(splits["train"])))
    same = alike(class_names)
    if same:
        text = f"names of classes differ in case or Unicode form alone: {', '.join(same[:5])}"
        notices.append(Notice.of("names", None, same, text))
    items = {}
    for split, folder in splits.items():
        findings = Findings(split)
        items[split] = _items(folder, class_names, findings)
        notices += findings.notices()
    files = sorted(file for found in items.values() for file, _ in found)
    return assemble_images(
        name,
        shown(root),
        files_digest(root, files),
        {
            split: (lambda found=found: Encoded(class_names, blocks_of(found)))
            for split, found in items.items()
        },
        decoder=decoder,
        cache=cache,
        mean=mean,
        std=std,
        test_fraction=None if "test" in splits else test_fraction,
        unlabelled_path=unlabelled_path,
        notices=notices,
        **options,
    )


def _root(path: str | None) -> Path:
    if path is None:
        raise OptionError("path", None, "a folder with train/CLASS/*.png in it")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise OptionError("path", path, "a folder that is there, with train/CLASS/*.png in it")
    return root


def _splits(root: Path) -> tuple[dict[str, Path], list[Notice]]:
    """The folder of each split that is there, and what is beside them."""
    present = {folder.name: folder for folder in folders(root)}
    meant = [name for name in present if plain(name) in _LIKE_SPLITS]
    classes = [name for name in present if name not in meant]
    # A class may be called 'train' (beside 'car' and 'ship'): then it holds images, and no folders of classes.
    bare = not meant or (meant == ["train"] and classes and not folders(present["train"]))
    if bare and present:
        text = (
            f"{shown(root)} has no train/CLASS folders: its {len(present):,} folders are the classes, and test and "
            f"validation are cut from them"
        )
        return {"train": root}, [Notice("cut", None, len(present), text)]
    if "train" not in present:
        expected = f"train/CLASS/*.png in it, or a folder for each class, not the folders {[*present][:5]}"
        raise OptionError("path", str(root), expected)
    splits = {split: present.pop(folder) for split, folder in _SPLITS.items() if folder in present}
    if not present:
        return splits, []
    names = [shown(name) for name in present]
    text = f"folders beside train, val and test are not read: {', '.join(names[:5])}"
    return splits, [Notice.of("beside", None, names, text)]


def _items(
    folder: Path, class_names: tuple[str, ...], findings: Findings
) -> list[tuple[bytes | Path | None, int]]:
    """Files and labels of one split, by class and name."""
    if not class_names:
        raise OptionError("path", str(folder), "a folder for each class in it")
    numbers = {name: number for number, name in enumerate(class_names)}
    class_folders = folders(folder)
    for child in class_folders:
        if child.name not in numbers:
            like = [name for name in class_names if plain(name) == plain(child.name)]
            said = f"a class that train has: {list(class_names)[:10]}"
            more = f"; {like[0]!r} differs in case or Unicode form alone: rename one" if like else ""
            raise OptionError("path", str(child), said + more)
    items: list[tuple[bytes | Path | None, int]] = []
    for child, files in zip(class_folders, class_files(folder, class_folders, findings), strict=True):
        if not files:
            expected = f"images in it ({', '.join(sorted(SUFFIXES))}); add some, or remove the folder"
            raise OptionError("path", str(child), expected)
        items += [(file, numbers[child.name]) for file in files]
    return items
