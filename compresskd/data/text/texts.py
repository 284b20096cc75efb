"""Texts with a class, labels or numbers each: sentences, questions, pairs of sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from compresskd.data.base import Data
from compresskd.data.checks import check_probabilities
from compresskd.data.columns import check_columns, class_numbers, tables
from compresskd.data.notice import Notice
from compresskd.data.text.assemble import LabelledOptions, Labels, Opened, assemble_texts, sequences_of
from compresskd.data.text.sequences import Block, Sequences
from compresskd.data.text.tokenizer import Encoded, Tokenizer, tokenizer_of
from compresskd.data.text.told import cut_off, left_out
from compresskd.data.text.used_tokens import tokenized
from compresskd.data.unlabelled import KEY
from compresskd.options import Count, OptionError
from compresskd.tasks import CLASSES, LABELS, VALUES, VECTORS


def text(
    *,
    name: str,
    text_column: str,
    pair_column: str | None,
    label_column: str | Sequence[str],
    weight_column: str | None,
    tokenizer: str | None,
    max_length: Count | None,
    asks: str | None,
    class_weights: Sequence[float] | str | None,
    group_by_length: bool,
    skip_bad: bool,
    unlabelled_spans: Count | None = None,
    unlabelled_replacements: Count | None = None,
    unlabelled_subwords: Count | None = None,
    **options: Unpack[LabelledOptions],
) -> Data:
    """Texts of a folder, a file or a set of the hub, each with what a task asks of it.

    Args:
        pair_column: a second text; both are given to the model together.
        label_column: with a class; for labels and values several columns may be named, and for classes one with the
            probability of each class (soft labels).
        asks: "classes", "labels" (0 or 1 in each label column), "values" (numbers), or "vectors", for which no label
            is read; None: classes.
        unlabelled_path: a file or folder of texts without labels, in the same text columns (see `alternating`).
        unlabelled_spans, unlabelled_replacements, unlabelled_subwords: variants of each training text, more of them
            (see `variants`).
        max_length: tokens of a text, special ones among them; the rest is cut off. None: what the tokenizer says.

    Raises:
        OptionError: for an option that does not fit, and ValueError for texts and labels that cannot be used.
    """
    opened = Opened.at(options)
    read = {"text_column": text_column, "pair_column": pair_column, "weight_column": weight_column}
    read = {key: column for key, column in read.items() if column is not None}
    labelled = [label_column] if isinstance(label_column, str) else list(label_column)
    labelled = [] if asks == VECTORS else labelled  # a teacher says them
    for split in opened.names:
        check_columns(opened.part(split), read, opened.where(split))
        for column in labelled:
            check_columns(opened.part(split), {"label_column": column}, opened.where(split))
    if asks == VECTORS and options.get(KEY) is not None:
        raise OptionError(
            KEY, options.get(KEY), "null: this task needs no labels; add the texts to data.path"
        )
    counts = {
        "spans": unlabelled_spans,
        "replacements": unlabelled_replacements,
        "subwords": unlabelled_subwords,
    }
    drawn = _drawn(counts, asks, pair_column)
    alone = Opened.unlabelled(options)
    texts = {key: column for key, column in read.items() if key != "weight_column"}
    if alone is not None:
        check_columns(alone.part("unlabelled"), texts, alone.where("unlabelled"))
    labels, numbers = _labels(opened, labelled, asks or CLASSES, class_weights)
    sets = [opened] if alone is None else [opened, alone]
    made = tokenizer_of(tokenizer, lambda: (text for each in sets for text in _known(each, read)))
    length = max_length or made.max_length

    def sources_of(tokenizer: Tokenizer) -> dict[str, Sequences]:
        reader = _Reader(opened, read, labelled, labels.kind, numbers, tokenizer, length, skip_bad)
        determines = [read, labelled, labels.kind, list(numbers), length, skip_bad]
        sources = sequences_of(opened, options, tokenizer, determines, reader.blocks)
        if alone is not None:
            reader = _Reader(alone, texts, (), labels.kind, {}, tokenizer, length, skip_bad)
            sources |= sequences_of(alone, options, tokenizer, [texts, length, skip_bad], reader.blocks)
        return sources

    found = tokenized(made, options, sources_of)
    columns = ["input_ids", *(["token_type_ids"] if made.has_types and pair_column else [])]
    return assemble_texts(
        name,
        found.sources,
        labels,
        columns=columns,
        tokenizer=found.tokenizer,
        options=options,
        notices=[notice for each in (*sets, found) for notice in each.notices],
        preprocessing={
            "kind": "text",
            "columns": [text_column, *([pair_column] if pair_column else [])],
            "max_length": length,
        },
        group_by_length=group_by_length,
        vocabulary=found.vocabulary,
        variants=drawn,
    )


def _drawn(counts: Mapping[str, int | None], asks: str | None, pair_column: str | None) -> dict[str, int]:
    """How many variants of each kind are drawn of a text. Raises OptionError where there is no use for them."""
    drawn = {kind: count for kind, count in counts.items() if count is not None}
    if drawn and (asks == VECTORS or pair_column is not None):
        kind, count = next(iter(drawn.items()))
        expected = "null: this task needs no labels" if asks == VECTORS else "null for pairs of texts"
        raise OptionError(f"unlabelled_{kind}", count, expected)
    return drawn


def _labels(
    opened: Opened, columns: Sequence[str], asks: str, class_weights: Sequence[float] | str | None
) -> tuple[Labels, dict[Any, int]]:
    if asks not in (CLASSES, LABELS, VALUES, VECTORS):
        raise OptionError(
            "asks", asks, f"{CLASSES}, {LABELS}, {VALUES} or {VECTORS}: another data set for this task"
        )
    if class_weights is not None and asks != CLASSES:
        raise OptionError("class_weights", class_weights, f"null: the task asks for {asks}")
    if asks == VECTORS:
        return Labels((), 0, asks), {}
    if asks != CLASSES:
        return Labels(tuple(columns), len(columns), asks), {}
    if not columns:
        expected = "the name of the column of the class, or of a column of probabilities for each class"
        raise OptionError("label_column", columns, expected)
    if len(columns) > 1:
        if class_weights is not None:
            expected = "null: soft labels are no classes; use data.weight_column"
            raise OptionError("class_weights", class_weights, expected)
        return Labels(tuple(columns), len(columns), asks), {}
    names, numbers = class_numbers(opened.part("train"), columns[0], opened.where("train"))
    return Labels(names, len(names), asks, class_weights), numbers


def _known(opened: Opened, read: Mapping[str, str]) -> Iterator[str]:
    for key in ("text_column", "pair_column"):
        if key in read:
            yield from opened.texts(read[key], key=key)


class _Reader:
    """Rows of a split as tokens and targets; what is bad is named."""

    def __init__(
        self,
        opened: Opened,
        read: Mapping[str, str],
        labelled: Sequence[str],
        kind: str,
        numbers: Mapping[Any, int],
        tokenizer: Tokenizer,
        max_length: int | None,
        skip_bad: bool,
    ):
        self._opened, self._read, self._labelled, self._kind = opened, read, labelled, kind
        self._numbers, self._tokenizer, self._max_length = numbers, tokenizer, max_length
        self._skip_bad = skip_bad

    def blocks(self, split: str, notices: list[Notice]) -> Iterator[Block]:
        """Raises ValueError for texts without a letter, unless they are skipped, and labels of another kind."""
        where = self._opened.where(split)
        bad: list[str] = []
        position = truncated = total = 0
        for table in tables(self._opened.part(split), [*self._read.values(), *self._labelled], where):
            rows = {column: table[column].to_pylist() for column in table.column_names}
            good = [row for row in range(len(table)) if self._is_text(rows, row, position, where)]
            encoded = dict(zip(good, self._encoded(rows, good) if good else [], strict=True))
            # a tokenizer may drop all of a text: marks that nobody sees
            good = [row for row in good if len(encoded[row].ids)]
            bad += [f"row {position + row}" for row in sorted(set(range(len(table))) - set(good))]
            if good:
                kept = {column: [values[row] for row in good] for column, values in rows.items()}
                whole = [encoded[row] for row in good]
                yield self._block(kept, whole, [position + row for row in good], where)
                truncated += sum(each.truncated for each in whole)
            total += len(good)
            position += len(table)
        notices += left_out(split, where, bad, position, "texts are empty", skip_bad=self._skip_bad)
        notices += cut_off(split, truncated, total, "texts", self._max_length)

    def _is_text(self, rows: Mapping[str, list[Any]], row: int, position: int, where: str) -> bool:
        """Whether there is anything in it. Raises OptionError for what is no text."""
        text = rows[self._read["text_column"]][row]
        if text is not None and not isinstance(text, str):
            expected = f"a column of texts, not {type(text).__name__} in row {position + row} of {where}"
            raise OptionError("text_column", self._read["text_column"], expected)
        return bool(text and text.strip())

    def _encoded(self, rows: Mapping[str, list[Any]], good: Sequence[int]) -> list[Encoded]:
        texts, pair = rows[self._read["text_column"]], self._read.get("pair_column")
        pairs = None if pair is None else [rows[pair][row] or "" for row in good]
        return self._tokenizer.encode([texts[row] for row in good], pairs, self._max_length)

    def _block(
        self, rows: Mapping[str, list[Any]], encoded: Sequence[Encoded], places: Sequence[int], where: str
    ) -> Block:
        more = {"targets": self._targets(rows, places, where)} if self._labelled else {}
        if "weight_column" in self._read:
            weights = _numbers_of(rows[self._read["weight_column"]], places, "weight_column", where)
            if (weights < 0).any():
                bad = int((weights < 0).argmax())
                expected = f"numbers >= 0, not {weights[bad]:g} in row {places[bad]} of {where}"
                raise OptionError("weight_column", self._read["weight_column"], expected)
            more["weights"] = weights
        lengths = np.array([len(each.ids) for each in encoded], np.int64)
        return Block(
            {
                "input_ids": np.concatenate([each.ids for each in encoded]),
                **(
                    {"token_type_ids": np.concatenate([each.types for each in encoded])}
                    if "pair_column" in self._read and self._tokenizer.has_types
                    else {}
                ),
            },
            lengths,
            more,
        )

    def _targets(self, rows: Mapping[str, list[Any]], places: Sequence[int], where: str) -> np.ndarray:
        """[n] int64, or [n, D] float32."""
        if self._kind == CLASSES and len(self._labelled) == 1:
            (column,) = self._labelled
            for label, place in zip(rows[column], places, strict=True):
                if isinstance(label, list) or label not in self._numbers:
                    expected = f"labels of the {len(self._numbers)} in train, not {label!r} in row {place} of {where}"
                    raise OptionError("label_column", column, expected)
            return np.array([self._numbers[label] for label in rows[column]], np.int64)
        found = [_numbers_of(rows[column], places, "label_column", where) for column in self._labelled]
        values = np.stack(found, axis=1)
        if self._kind == CLASSES:
            check_probabilities(
                values, self._labelled, "label_column", f"rows {places[0]} to {places[-1]} of {where}"
            )
        if self._kind == LABELS and ((values < 0) | (values > 1)).any():
            row, column = np.argwhere((values < 0) | (values > 1))[0]
            expected = f"0 or 1, not {values[row, column]:g} in row {places[row]} of {where}"
            raise OptionError("label_column", self._labelled[column], expected)
        return values


def _numbers_of(values: Sequence[Any], places: Sequence[int], key: str, where: str) -> np.ndarray:
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise OptionError(key, value, f"finite numbers, not what row {place} of {where} has")
    return np.array(values, np.float32)
