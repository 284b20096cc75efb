"""Sentences that are cut into words already, each word with a tag."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, Unpack

import numpy as np

from compresskd.data.base import Data
from compresskd.data.columns import check_columns, class_numbers, tables
from compresskd.data.notice import Notice
from compresskd.data.text.assemble import LabelledOptions, Labels, Opened, assemble_texts, sequences_of
from compresskd.data.text.sequences import Block, Sequences
from compresskd.data.text.tokenizer import Encoded, Tokenizer, tokenizer_of
from compresskd.data.text.told import cut_off, left_out
from compresskd.data.text.used_tokens import tokenized
from compresskd.options import Count, OptionError
from compresskd.tasks import IGNORED, UNLABELLED


def tokens(
    *,
    name: str,
    tokens_column: str,
    tags_column: str,
    tokenizer: str | None,
    max_length: Count | None,
    group_by_length: bool,
    skip_bad: bool,
    class_weights: Sequence[float] | str | None = None,
    **options: Unpack[LabelledOptions],
) -> Data:
    """Sentences of a folder, a file or a set of the hub; the tag of a word is asked of its first piece.

    Raises:
        OptionError: for an option that does not fit, and ValueError for words and tags that cannot be used.
    """
    opened = Opened.at(options)
    read = {"tokens_column": tokens_column, "tags_column": tags_column}
    for split in opened.names:
        check_columns(opened.part(split), read, opened.where(split))
    alone, words = Opened.unlabelled(options), {"tokens_column": tokens_column}
    if alone is not None:
        check_columns(alone.part("unlabelled"), words, alone.where("unlabelled"))
    names, numbers = class_numbers(
        opened.part("train"), tags_column, opened.where("train"), key="tags_column", lists=True
    )
    made = tokenizer_of(tokenizer, lambda: ())
    length = max_length or made.max_length

    def sources_of(tokenizer: Tokenizer) -> dict[str, Sequences]:
        def blocks(split: str, notices: list[Notice]) -> Iterator[Block]:
            part, where = opened.part(split), opened.where(split)
            return _blocks(part, split, where, read, numbers, tokenizer, length, notices, skip_bad=skip_bad)

        def untagged(split: str, notices: list[Notice]) -> Iterator[Block]:
            assert alone is not None
            part, where = alone.part(split), alone.where(split)
            return _blocks(part, split, where, words, {}, tokenizer, length, notices, skip_bad=skip_bad)

        sources = sequences_of(opened, options, tokenizer, [read, list(numbers), length, skip_bad], blocks)
        if alone is not None:
            sources |= sequences_of(alone, options, tokenizer, [words, length, skip_bad], untagged)
        return sources

    found = tokenized(made, options, sources_of)
    sets = [opened] if alone is None else [opened, alone]
    return assemble_texts(
        name,
        found.sources,
        Labels(names, len(names), "tokens", class_weights),
        columns=["input_ids"],
        tokenizer=found.tokenizer,
        options=options,
        notices=[notice for each in (*sets, found) for notice in each.notices],
        preprocessing={"kind": "tokens", "columns": [tokens_column], "max_length": length},
        group_by_length=group_by_length,
        vocabulary=found.vocabulary,
    )


def _blocks(
    part: Any,
    split: str,
    where: str,
    read: Mapping[str, str],
    numbers: Mapping[Any, int],
    tokenizer: Tokenizer,
    max_length: int | None,
    notices: list[Notice],
    *,
    skip_bad: bool,
) -> Iterator[Block]:
    bad: list[str] = []
    position = truncated = lost = total = 0
    for table in tables(part, list(read.values()), where):
        rows, tags, places = [], [], []
        columns = [table[column].to_pylist() for column in read.values()]
        for words, *named in zip(*columns, strict=True):
            if not words:
                bad.append(f"row {position}")
            else:
                tagged = _numbered(
                    words, named[0] if named else None, numbers, read, f"row {position} of {where}"
                )
                tags.append(tagged)
                rows.append(words)
                places.append(position)
            position += 1
        encoded = tokenizer.encode_words(rows, max_length) if rows else []
        targets = [_first_pieces(one, of_words) for one, of_words in zip(encoded, tags, strict=True)]
        # a batch of sentences without a tag would have no loss
        asked = [bool((each != IGNORED).any()) for each in targets]
        bad += [f"row {place}" for place, is_asked in zip(places, asked, strict=True) if not is_asked]
        encoded, targets = list(compress(encoded, asked)), list(compress(targets, asked))
        if not encoded:
            continue
        truncated += sum(each.truncated for each in encoded)
        total += len(encoded)
        kept = sum(int((each != IGNORED).sum()) for each in targets)
        lost += sum(map(len, compress(tags, asked))) - kept
        lengths = np.array([len(each.ids) for each in encoded], np.int64)
        ids = np.concatenate([each.ids for each in encoded])
        yield Block({"input_ids": ids, "targets": np.concatenate(targets)}, lengths)
    notices += left_out(split, where, bad, position, "sentences have no tagged word", skip_bad=skip_bad)
    notices += cut_off(split, truncated, total, "sentences", max_length)
    if lost:
        text = f"{split}: the tags of {lost:,} words are not asked: they are cut off, or the tokenizer drops them"
        notices.append(Notice("unasked", split, lost, text))


def _numbered(
    words: Any, tags: Any, numbers: Mapping[Any, int], read: Mapping[str, str], where: str
) -> list[int]:
    """The number of each word's tag, or what stands for none where there are no tags.

    Raises OptionError for what are no lists of words and tags of train.
    """
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        expected = f"a column with a list of words, not what {where} has"
        raise OptionError("tokens_column", read["tokens_column"], expected)
    if tags is None and "tags_column" not in read:
        return [UNLABELLED] * len(words)
    if not isinstance(tags, list) or len(tags) != len(words):
        expected = f"a column with a tag for each of the {len(words)} words of {where}"
        raise OptionError("tags_column", read["tags_column"], expected)
    for tag in tags:
        if isinstance(tag, list) or tag not in numbers:
            expected = f"tags of the {len(numbers)} in train, not {tag!r} in {where}"
            raise OptionError("tags_column", read["tags_column"], expected)
    return [IGNORED if numbers[tag] < 0 else numbers[tag] for tag in tags]


def _first_pieces(encoded: Encoded, tags: Sequence[int]) -> np.ndarray:
    """[L] int32: of each token the tag of the word whose first piece it is, -100 for all others."""
    found = np.full(len(encoded.ids), IGNORED, np.int32)
    before = None
    for place, word in enumerate(encoded.words):
        if word is not None and word != before:
            found[place] = tags[word]
        before = word
    return found
