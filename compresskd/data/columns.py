"""Columns of a Hugging Face data set as encoded images and labels."""

from collections.abc import Iterator, Mapping
from contextlib import closing
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
    """Raise OptionError unless `split` has the column that each key names."""
    present = list(split.column_names or _first_row(split))
    for key, column in columns.items():
        if column not in present:
            expected = f"a column of {where}: {', '.join(present)}{did_you_mean(column, present)}"
            raise OptionError(key, column, expected)


def _first_row(split: Any) -> Mapping[str, Any]:
    """Where no header says the columns; the rows are closed at once, and with them the file."""
    with closing(iter(split)) as rows:
        return next(rows, {})


def class_numbers(
    train: Any, column: str, where: str, *, lists: bool = False
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of classes, and the number of each value of a column of labels, or of `lists` of labels."""
    feature = (train.features or {}).get(column)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is not None:
        # -1 stands for no label: assembling refuses it with the position of the sample.
        return tuple(names), {number: number for number in range(-1, len(names))}
    values = set()
    for table in tables(train, [column], where):
        for value in table[column].to_pylist():
            labels = value if lists and isinstance(value, list) else [value]
            values.update(_hashable(label, column, where) for label in labels)
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    return tuple(map(str, ordered)), {value: number for number, value in enumerate(ordered)}


def tables(part: Any, columns: list[str], where: str) -> Iterator[Any]:
    """Arrow tables of some columns, images as stored. Raises ValueError where the library cannot read them."""
    from datasets import Image

    chosen = part.select_columns(columns)
    for column in columns:
        if isinstance((part.features or {}).get(column), Image):
            chosen = chosen.cast_column(column, Image(decode=False))
    try:
        yield from chosen.with_format("arrow").iter(batch_size=_BLOCK)
    except Exception as error:
        raise ValueError(
            f"{where} cannot be read ({type(error).__name__}: {error}); if its files are damaged, fetch them again, "
            f"or write data.path=DIR, a good copy"
        ) from error


def _hashable(value: Any, column: str, where: str) -> Any:
    if not isinstance(value, str | int):
        expected = f"a column with a string or an integer per image, not {value!r} in {where}"
        raise OptionError("label_column", column, expected)
    return value
