"""Image classification sets in the formats of Hugging Face `datasets`, from the hub or from a local folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, cast

from compresskd.data.assemble import Options
from compresskd.data.base import Data
from compresskd.data.cache import Cache
from compresskd.data.columns import Columns, check_splits
from compresskd.data.decode import Decoder
from compresskd.data.digest import files_digest
from compresskd.data.images import assemble_images
from compresskd.options import OptionError


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
    location = _location(id, config, revision, path)

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
        **options,
    )


def _location(id: str | None, config: str | None, revision: str | None, path: str | None) -> "_Folder | _Hub":
    if path is not None:
        if revision is not None:
            raise OptionError("revision", revision, f"null with path={path}: a folder has none")
        return _Folder(path, config)
    if id is None:
        raise OptionError("id", None, "OWNER/NAME of a set of the hub, or a local folder: data.path=DIR")
    return _Hub(id, config, revision)


@dataclass(frozen=True)
class _Folder:
    """A set in a local folder."""

    what: str
    config: str | None

    @property
    def root(self) -> Path:
        return Path(self.what).expanduser().resolve()

    @property
    def digest(self) -> str:
        if not self.root.is_dir():
            raise OptionError(
                "path", str(self.root), "a folder of parquet files such as train-00000-of-00001.parquet"
            )
        files = sorted(
            file
            for file in self.root.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(self.root).parts)
        )
        return files_digest(self.root, files) + str(self.config)

    @cached_property
    def loaded(self) -> Mapping[str, Any]:
        from datasets import load_dataset

        try:
            # Streaming reads the files where they are; a full load would copy them into one more cache first.
            return cast(Mapping, load_dataset(str(self.root), self.config, streaming=True))
        except Exception as error:
            said = f"a data set that can be read ({type(error).__name__}: {error}): parquet files such as"
            raise OptionError("path", str(self.root), f"{said} train-00000-of-00001.parquet") from error


@dataclass(frozen=True)
class _Hub:
    """A set of the hub, or what an earlier download left of it on this machine."""

    what: str
    config: str | None
    revision: str | None

    @property
    def digest(self) -> str:
        return repr({split: part._fingerprint for split, part in self.loaded.items()})

    @cached_property
    def loaded(self) -> Mapping[str, Any]:
        from datasets import load_dataset

        try:
            return cast(Mapping, load_dataset(self.what, self.config, revision=self.revision))
        except Exception as error:
            said = f"a set that can be read from the Hugging Face hub ({type(error).__name__}: {error}); without a"
            raise OptionError(
                "id", self.what, f"{said} connection write data.path=DIR, a folder of its files"
            ) from error
