"""Columns of a Hugging Face data set as encoded images and labels."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskd.data.images import Encoded
from compresskd.options import OptionError, did_you_mean

_BLOCK = 512


def check_splits(loaded: Mapping[str, Any], what: str, names: Mapping[str, str]) -> None:
    """Raise ValueError unless every split that `names` maps train, validation and test to is there."""
    for split, theirs in names.items():
        if theirs not in loaded:
            raise ValueError(
                f"data.{split}_split: {what} has no split {theirs!r}, it has {sorted(loaded)}; write "
                f"data.{split}_split=NAME"
                + ("" if split == "train" else f", or data.{split}_split=null data.{split}_fraction=0.1")
            )


@dataclass(frozen=True)
class Columns:
    """Which column holds images and which labels."""

    image: str
    label: str

    def encoded(self, train: Any, part: Any, where: str) -> Encoded:
        """Images of `part`, their labels numbered as those of `train`.

        Raises ValueError for columns that are not there or hold something else.
        """
        if self.image == self.label:
            raise OptionError("image_column", self.image, f"another column of {where} than label_column")
        for split in (train, part):
            check_columns(split, {"image_column": self.image, "label_column": self.label}, where)
        class_names, numbers = class_numbers(train, self.label, where)
        return Encoded(class_names, self._items(part, numbers, where))

    def _items(
        self, part: Any, numbers: dict[Any, int], where: str
    ) -> Iterator[list[tuple[bytes | Path | None, int]]]:
        position = 0
        for table in tables(part, [self.image, self.label], where):
            images, labels = table[self.image].to_pylist(), table[self.label].to_pylist()
            block = []
            for image, label in zip(images, labels, strict=True):
                if label not in numbers:
                    expected = (
                        f"labels of the {len(numbers)} in train, {list(numbers)[:10]}, for image {position}"
                    )
                    raise OptionError("label_column", label, f"{expected} of {where}")
                block.append((self._bytes(image, position, where), numbers[label]))
                position += 1
            yield block

    def _bytes(self, image: Any, position: int, where: str) -> bytes | Path | None:
        if image is None or isinstance(image, bytes):
            return image
        if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
            return image["bytes"]
        if isinstance(image, dict) and isinstance(image.get("path"), str):
            return Path(image["path"])
        expected = f"a column of encoded images; image {position} of {where} is a {type(image).__name__}"
        raise OptionError("image_column", self.image, expected)


def check_columns(split: Any, columns: Mapping[str, str], where: str) -> None:
    """Raise OptionError unless `split` has the column that each key names, ValueError where it has none at all."""
    present = list(split.column_names or _first_row(split, where))
    if not present:
        raise ValueError(f"{where} holds nothing; write data.path=DIR or FILE with samples")
    for key, column in columns.items():
        if column not in present:
            expected = f"a column of {where}: {', '.join(present)}{did_you_mean(column, present)}"
            raise OptionError(key, column, expected)


def _first_row(split: Any, where: str) -> Mapping[str, Any]:
    """Where no header says the columns; the rows are closed at once, and with them the file."""
    with _readable(where), closing(iter(split)) as rows:
        return next(rows, {})


def class_numbers(
    train: Any, column: str, where: str, *, key: str = "label_column", lists: bool = False
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of classes, and the number of each value of a column of labels, or of `lists` of labels.

    Raises OptionError, of the option `key`, for what names no class.
    """
    feature = (train.features or {}).get(column)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is not None:
        # -1 stands for no label: assembling refuses it with the position of the sample.
        return tuple(names), {number: number for number in range(-1, len(names))}
    values, row = set(), 0
    for table in tables(train, [column], where):
        for value in table[column].to_pylist():
            for label in value if lists and isinstance(value, list) else [value]:
                if not isinstance(label, str | int):
                    expected = (
                        f"a column of strings or whole numbers, not {label!r} as row {row} of {where} has"
                    )
                    raise OptionError(key, column, expected)
                values.add(label)
            row += 1
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    return tuple(map(str, ordered)), {value: number for number, value in enumerate(ordered)}


def tables(part: Any, columns: list[str], where: str) -> Iterator[Any]:
    """Arrow tables of some columns, images as stored. Raises ValueError where the library cannot read them."""
    from datasets import Image

    chosen = part.select_columns(columns)
    for column in columns:
        if isinstance((part.features or {}).get(column), Image):
            chosen = chosen.cast_column(column, Image(decode=False))
    with _readable(where):
        yield from chosen.with_format("arrow").iter(batch_size=_BLOCK)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Raise ValueError where the library cannot read what it is asked for in this block."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{where} cannot be read ({type(error).__name__}: {error}); if its files are damaged, fetch them again, "
            f"or write data.path=DIR, a good copy"
        ) from error
