"""Image classification sets in the formats of Hugging Face `datasets`, from the hub or from a local folder."""

from collections.abc import Sequence
from typing import Unpack

from compresskd.data.assemble import Options
from compresskd.data.base import Data
from compresskd.data.cache import Cache
from compresskd.data.columns import Columns, check_splits
from compresskd.data.decode import Decoder
from compresskd.data.images import assemble_images
from compresskd.data.location import located


def hub(
    *,
    name: str,
    id: str | None,
    config: str | None,
    revision: str | None,
    path: str | None,
    image_column: str,
    label_column: str,
    train_split: str,
    validation_split: str | None,
    test_split: str | None,
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
    """The set `id` of the hub, or the one of the same layout in the folder `path`, which needs no connection.

    `validation_split` and `test_split` name splits of the set; without them they are cut from train. A folder
    that was decoded before is recognised by the content of its files, without opening it as a data set.

    Raises FileNotFoundError where the set cannot be found or reached, and ValueError where it has other splits or
    columns, or images that cannot be used.
    """
    names = {"train": train_split, "validation": validation_split, "test": test_split}
    names = {split: theirs for split, theirs in names.items() if theirs is not None}
    columns = Columns(image_column, label_column)
    decoder, cache = (
        Decoder(size, channels, levels, max_pixels, skip_bad),
        Cache.at(cache_dir, max_in_memory_bytes),
    )
    location = located(id, config, revision, path)

    def open_split(split: str):
        check_splits(location.loaded, location.what, names)
        train, part = location.loaded[names["train"]], location.loaded[names[split]]
        return columns.encoded(train, part, f"the {names[split]} split of {location.what}")

    return assemble_images(
        name,
        location.what,
        repr((location.digest, names, columns)),
        {split: (lambda split=split: open_split(split)) for split in names},
        decoder=decoder,
        cache=cache,
        mean=mean,
        std=std,
        test_fraction=test_fraction,
        unlabelled_path=unlabelled_path,
        **options,
    )
