"""Tables of csv, parquet and json lines files, with the splits that a folder of them has."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compresskd.data.named import named_splits
from compresskd.data.notice import Notice
from compresskd.options import OptionError


def read_tables(path: str | None, **given: str | None) -> tuple[dict[str, Any], list[Notice]]:
    """Arrow tables of train, and of validation and test where there are files of these names; what is worth telling.

    Raises OptionError for a path that is none of such files.
    """
    if path is None:
        raise OptionError(
            "path", None, "a csv, parquet or json lines file, or a folder of train.csv, test.csv"
        )
    root = Path(path).expanduser()
    files = [root] if root.is_file() else sorted(p for p in root.glob("*") if p.is_file())
    readers = _readers()
    by_split: dict[str, list[Path]] = {}
    for file in files:
        if not file.name.startswith(".") and file.suffix.lower() in readers:
            split = "train" if root.is_file() else file.stem.partition("-")[0]
            by_split.setdefault(split, []).append(file)
    if not by_split:
        raise OptionError("path", path, f"a file of {', '.join(readers)}, or a folder of such files by split")
    names, notices = named_splits(by_split, str(root), **given)
    return {split: _joined(by_split[theirs], readers) for split, theirs in names.items()}, notices


def _readers() -> Mapping[str, Any]:
    from pyarrow import csv, json, parquet

    read_csv = partial(csv.read_csv, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    return {
        ".csv": read_csv,
        ".parquet": parquet.read_table,
        ".jsonl": json.read_json,
        ".json": json.read_json,
    }


def _joined(files: list[Path], readers: Mapping[str, Any]) -> Any:
    import pyarrow

    tables = []
    for file in files:
        try:
            tables.append(readers[file.suffix.lower()](file))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            raise OptionError("path", str(file), f"a file that can be read ({said})") from error
    if any(table.column_names != tables[0].column_names for table in tables):
        raise OptionError("path", str(files[0].parent), "files of one split with the same columns")
    return tables[0] if len(tables) == 1 else pyarrow.concat_tables(tables, promote_options="permissive")
