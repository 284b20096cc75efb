"""What a stored model predicts of the samples in a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.artifact.preprocess import Preprocess
from compresskd.data.tree import SUFFIXES
from compresskd.run import RunDirectoryError
from compresskd.tasks import call, logits_of

Row = dict[str, Any]
_TABLES = (".csv", ".parquet", ".json", ".jsonl")


class CannotPredict(RunDirectoryError):
    """The file holds nothing that the model takes."""


def predict(model: nn.Module, about: Mapping[str, Any], file: Path, *, batch_size: int = 32) -> Iterator[Row]:
    """One row a sample, in the order of the file.

    Args:
        model: in evaluation mode.
        about: what its file says of its data.
        file: images or a folder of them; a text file, one text a line; or a csv, parquet or json lines file with the
            columns that the model was trained with.

    Raises:
        CannotPredict: the file is of another kind, or lacks a column.
    """
    preprocess = Preprocess(about)
    names = samples_of(preprocess, file)
    with torch.inference_mode():
        for batch in _batches(names, batch_size):
            try:
                inputs = preprocess(*batch)
            except (ValueError, OSError) as error:
                raise CannotPredict(f"{file}: {error}") from error
            logits = logits_of(call(model, inputs)).float()
            for place, row in enumerate(logits):
                yield _described(row, _raw(batch[0], place), about)


def samples_of(preprocess: Preprocess, file: Path) -> tuple[Any, Any]:
    """All samples of a file, as the preprocessing takes them, and their second texts, or None."""
    if not file.exists():
        raise CannotPredict(f"{file} is not there")
    if preprocess.kind == "images":
        found = (
            [file] if file.is_file() else sorted(p for p in file.rglob("*") if p.suffix.lower() in SUFFIXES)
        )
        if not found or found[0].suffix.lower() not in SUFFIXES:
            raise CannotPredict(f"{file}: expected an image, or a folder of images")
        return found, None
    columns = list(preprocess.about["preprocessing"].get("columns", []))
    if preprocess.kind == "table":
        names = [column["name"] for column in columns]
        table = _table(file, names)
        return {name: table[name].to_pylist() for name in names}, None
    if file.suffix.lower() in _TABLES:
        table = _table(file, columns)
        texts = [table[column].to_pylist() for column in columns]
        return texts[0], texts[1] if len(texts) > 1 else None
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(columns) > 1:
        raise CannotPredict(f"{file}: expected a csv, parquet or json lines file with the columns {columns}")
    return ([line.split() for line in lines] if preprocess.kind == "tokens" else lines), None


def _table(file: Path, columns: Sequence[str]) -> Any:
    from compresskd.data.table.read import read_tables

    if file.suffix.lower() not in _TABLES:
        raise CannotPredict(f"{file}: expected a file of {', '.join(_TABLES)}")
    table = read_tables(str(file))[0]["train"]
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise CannotPredict(f"{file}: expected the columns {list(columns)}, got {table.column_names}")
    return table


def _batches(samples: tuple[Any, Any], size: int) -> Iterator[tuple[Any, ...]]:
    first, second = samples
    if isinstance(first, Mapping):
        count = len(next(iter(first.values())))
        for start in range(0, count, size):
            yield ({name: values[start : start + size] for name, values in first.items()},)
        return
    for start in range(0, len(first), size):
        part = first[start : start + size]
        yield (part,) if second is None else (part, second[start : start + size])


def _raw(batch: Any, place: int) -> str:
    """What names a sample in the output."""
    if isinstance(batch, Mapping):
        return ""
    sample = batch[place]
    return " ".join(sample) if isinstance(sample, list) else str(sample)


def _described(logits: Tensor, sample: str, about: Mapping[str, Any]) -> Row:
    """What the logits of one sample say, in words of the data."""
    row: Row = {"sample": sample} if sample else {}
    names = about.get("class_names") or [str(k) for k in range(logits.shape[-1])]
    task = about.get("task", "classification")
    if task == "multi_label":
        share = logits.sigmoid().tolist()
        return (
            row
            | {"labels": " ".join(n for n, p in zip(names, share, strict=True) if p > 0.5)}
            | dict(zip(names, (round(p, 4) for p in share), strict=True))
        )
    if task == "embedding":
        return row | dict(zip(names, logits.tolist(), strict=True))
    if task == "regression":
        scale = about.get("preprocessing", {}).get("targets", {})
        mean, std = (torch.tensor(scale.get(key, default)) for key, default in (("mean", 0.0), ("std", 1.0)))
        return row | dict(zip(names, (logits * std + mean).tolist(), strict=False))
    if logits.ndim == 1:
        probability, place = logits.softmax(dim=0).max(dim=0)
        return row | {"class": names[int(place)], "probability": round(float(probability), 4)}
    if task == "token_classification":
        return row | {"classes": " ".join(names[k] for k in logits.argmax(dim=1).tolist())}
    raise CannotPredict(f"a model of task={task} predicts no classes or values; load it, and call generate")


def write_rows(rows: Iterator[Row], out: Any, *, as_json: bool = False) -> int:
    """Write rows as csv, or as json lines; how many there were."""
    import csv
    import json

    first = list(islice(rows, 1))
    count = 0
    writer = None if as_json or not first else csv.DictWriter(out, list(first[0]), lineterminator="\n")
    if writer is not None:
        writer.writeheader()
    for row in (*first, *rows):
        if writer is None:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            writer.writerow({key: _safe(value) for key, value in row.items()})
        count += 1
    return count


def _safe(value: Any) -> Any:
    """A cell that a spreadsheet takes for no formula."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "@", "\t", "\r") else value
