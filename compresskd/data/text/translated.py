"""Texts and the texts that follow from them: translations, summaries, answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from compresskd.data.base import Data
from compresskd.data.columns import check_columns, tables
from compresskd.data.notice import Notice
from compresskd.data.text.assemble import Labels, Opened, SetOptions, assemble_texts, sequences_of
from compresskd.data.text.sequences import Block, Sequences
from compresskd.data.text.tokenizer import Encoded, Tokenizer, tokenizer_of
from compresskd.data.text.told import cut_off, left_out
from compresskd.data.text.used_tokens import tokenized
from compresskd.options import Count, OptionError, Whole
from compresskd.tasks import IGNORED


def text_to_text(
    *,
    name: str,
    text_column: str,
    target_column: str,
    tokenizer: str | None,
    max_length: Count | None,
    max_target_length: Count,
    decoder_start_id: Whole | None,
    group_by_length: bool,
    skip_bad: bool,
    **options: Unpack[SetOptions],
) -> Data:
    """Pairs of texts of a folder, a file or a set of the hub; the tokens of the second are to be predicted.

    Inputs have `input_ids`, `attention_mask` and `decoder_input_ids`: the targets moved on by one, after the token by
    which a decoder starts.

    Args:
        max_target_length: tokens of the second text; the rest is cut off.
        decoder_start_id: by which the decoder starts; None: what the config.json beside the tokenizer says, else the
            padding (as T5 does).

    Raises:
        OptionError: for an option that does not fit, and ValueError for texts that cannot be used.
    """
    opened = Opened.at(options)
    read = {"text_column": text_column, "target_column": target_column}
    for split in opened.names:
        check_columns(opened.part(split), read, opened.where(split))
    made = tokenizer_of(
        tokenizer, lambda: (text for key, column in read.items() for text in opened.texts(column, key=key))
    )
    length = max_length or made.max_length
    start = _start_of(tokenizer, made) if decoder_start_id is None else decoder_start_id
    if start >= made.vocabulary_size:
        raise OptionError("decoder_start_id", start, f"< {made.vocabulary_size}, the tokens that there are")

    def sources_of(tokenizer: Tokenizer) -> dict[str, Sequences]:
        def blocks(split: str, notices: list[Notice]) -> Iterator[Block]:
            part, where = opened.part(split), opened.where(split)
            lengths = length, max_target_length
            return _blocks(part, split, where, read, tokenizer, lengths, notices, skip_bad=skip_bad)

        return sequences_of(opened, options, tokenizer, [read, length, max_target_length, skip_bad], blocks)

    found = tokenized(made, options, sources_of, needed=[start], predicted=True)
    return assemble_texts(
        name,
        found.sources,
        Labels((), options.get("num_classes") or found.tokenizer.vocabulary_size, "texts"),
        columns=["input_ids"],
        tokenizer=found.tokenizer,
        options=options,
        notices=[*opened.notices, *found.notices],
        preprocessing={"kind": "text_to_text", "columns": [text_column], "max_length": length},
        group_by_length=group_by_length,
        decoder_start=start if found.vocabulary is None else found.vocabulary.number_of(start),
        vocabulary=found.vocabulary,
    )


def _blocks(
    part: Any,
    split: str,
    where: str,
    read: Mapping[str, str],
    tokenizer: Tokenizer,
    lengths: tuple[int | None, int],
    notices: list[Notice],
    *,
    skip_bad: bool,
) -> Iterator[Block]:
    bad: list[str] = []
    position = total = 0
    truncated = [0, 0]
    for table in tables(part, list(read.values()), where):
        texts, targets = (
            _texts(table[column].to_pylist(), key, column, position, where) for key, column in read.items()
        )
        pairs = [(a, b) for a, b in zip(texts, targets, strict=True) if a.strip() and b.strip()]
        whole = enumerate(zip(texts, targets, strict=True), position)
        bad += [f"row {row}" for row, (a, b) in whole if not (a.strip() and b.strip())]
        position += len(texts)
        if not pairs:
            continue
        sources = tokenizer.encode([a for a, _ in pairs], None, lengths[0])
        wanted = tokenizer.encode([b for _, b in pairs], None, lengths[1])
        for side, encoded in enumerate((sources, wanted)):
            truncated[side] += sum(each.truncated for each in encoded)
        total += len(pairs)
        yield _block(sources, wanted, [b for _, b in pairs], lengths[1])
    notices += left_out(split, where, bad, position, "pairs have an empty text", skip_bad=skip_bad)
    notices += cut_off(split, truncated[0], total, "texts", lengths[0])
    notices += cut_off(split, truncated[1], total, "targets", lengths[1], "max_target_length")


def _start_of(tokenizer: str | None, made: Tokenizer) -> int:
    """By which the decoder starts of the model that a tokenizer's folder is of."""
    file = Path(tokenizer or "") / "config.json"
    if tokenizer is None or not file.is_file():
        return made.padding_id
    try:
        start = json.loads(file.read_text()).get("decoder_start_token_id")
    except (OSError, ValueError, AttributeError):
        start = None  # what is wrong with it is told where the model is made
    return start if isinstance(start, int) else made.padding_id


def _texts(values: Sequence[Any], key: str, column: str, position: int, where: str) -> list[str]:
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            expected = f"a column of texts, not {type(value).__name__} in row {position + row} of {where}"
            raise OptionError(key, column, expected)
    return [value or "" for value in values]


def _block(
    sources: Sequence[Encoded], targets: Sequence[Encoded], texts: Sequence[str], longest: int
) -> Block:
    wanted = np.full((len(targets), longest), IGNORED, np.int32)
    for row, each in enumerate(targets):
        wanted[row, : len(each.ids)] = each.ids
    sizes = np.array([len(text.encode()) for text in texts], np.int64)
    lengths = np.array([len(each.ids) for each in sources], np.int64)
    ids = np.concatenate([each.ids for each in sources])
    return Block({"input_ids": ids}, lengths, {"targets": wanted, "sizes": sizes})
