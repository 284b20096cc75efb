"""Text in blocks of one length, one after the other: what language models are trained on."""

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Annotated, Unpack

import numpy as np
from annotated_types import Ge, Gt, Lt

from compresskd.data.base import Data
from compresskd.data.columns import check_columns
from compresskd.data.location import Location
from compresskd.data.notice import Notice
from compresskd.data.text.assemble import (
    Labels,
    Opened,
    SetOptions,
    assemble_texts,
    sequences_of,
    texts_of,
)
from compresskd.data.text.masking import masking_of
from compresskd.data.text.sequences import Block, Sequences
from compresskd.data.text.tokenizer import Tokenizer, tokenizer_of
from compresskd.data.text.used_tokens import tokenized
from compresskd.options import OptionError

BlockSize = Annotated[int, Ge(2)]
MaskShare = Annotated[float, Gt(0), Lt(1)]
_CHARACTERS_AT_ONCE = 2**18


def text_blocks(
    *,
    name: str,
    text_column: str,
    separator: str,
    tokenizer: str | None,
    block_size: BlockSize,
    mask_share: MaskShare | None = None,
    **options: Unpack[SetOptions],
) -> Data:
    """The text of a folder, a file or a set of the hub, its rows one after the other, in blocks of tokens.

    What is cut from train is its end. The last block, which is not full, is left out. `num_bytes` of a split are the
    UTF-8 bytes of the text that is predicted: all but the first token of each block.

    Args:
        separator: stands between two rows.
        mask_share: of the tokens, which are hidden and to be predicted (task=masked_lm); None: the next one is.

    Raises:
        OptionError: for an option that does not fit, and ValueError for text that cannot be used.
    """
    opened = Opened.at(options)
    for split in opened.names:
        check_columns(opened.part(split), {"text_column": text_column}, opened.where(split))

    def rows(split: str) -> Iterator[str]:
        return texts_of(opened.part(split), text_column, "text_column", opened.where(split))

    return _blocks(name, opened, rows, separator, tokenizer, block_size, [text_column], options, mask_share)


def python_docs(
    *, name: str, tokenizer: str | None, block_size: BlockSize, **options: Unpack[SetOptions]
) -> Data:
    """The topics of Python's `help()`: half a megabyte of English that come with the running version."""
    from pydoc_data.topics import topics

    texts = [topics[topic] for topic in sorted(topics)]
    digest = sha256("\0".join(texts).encode()).hexdigest()
    location = Location("Python's documentation", lambda: digest, lambda: {"train": texts})
    opened = Opened(location, {"train": "train"}, ())
    return _blocks(name, opened, lambda _: iter(texts), "\n\n", tokenizer, block_size, [], options)


def _blocks(
    name: str,
    opened: Opened,
    rows: Callable[[str], Iterator[str]],
    separator: str,
    tokenizer: str | None,
    block_size: int,
    columns: list[str],
    options: SetOptions,
    mask_share: float | None = None,
) -> Data:
    def parts(split: str) -> Iterator[str]:
        return chunks(rows(split), separator)

    made = tokenizer_of(tokenizer, lambda: (part for split in opened.names for part in parts(split)))

    def sources_of(tokenizer: Tokenizer) -> dict[str, Sequences]:
        def blocks(split: str, notices: list[Notice]) -> Iterator[Block]:
            return packed(parts(split), tokenizer, block_size, split, opened.where(split), notices)

        return sequences_of(opened, options, tokenizer, [columns, separator, block_size], blocks)

    found = tokenized(made, options, sources_of, predicted=True, contiguous=True)
    made = found.tokenizer
    masking = None if mask_share is None else masking_of(made, mask_share)
    size = max(made.vocabulary_size, 0 if masking is None else masking.mask_id + 1)
    declared = options.get("num_classes")
    if declared is not None and declared < size:
        expected = f">= {size}, the tokens that there are, or null"
        raise OptionError("num_classes", declared, expected)

    return assemble_texts(
        name,
        found.sources,
        Labels((), declared or size, "tokens"),
        columns=["input_ids"],
        tokenizer=made,
        options=options,
        notices=[*opened.notices, *found.notices],
        preprocessing={"kind": "text_blocks", "columns": columns, "max_length": block_size},
        contiguous=True,
        masking=masking,
        vocabulary=None if found.vocabulary is None else found.vocabulary.with_as_many(size),
    )


def chunks(texts: Iterable[str], separator: str) -> Iterator[str]:
    """All texts with the separator between them, in parts of about 256 thousand characters.

    A part ends where a line does, else before a space: tokens are those of the whole text, but for tokenizers that
    begin a text in a way of their own.
    """
    waiting, size, first = [], 0, True
    for text in texts:
        waiting += [text] if first else [separator, text]
        size, first = size + len(text) + len(separator), False
        if size < _CHARACTERS_AT_ONCE:
            continue
        whole, start = "".join(waiting), 0
        while len(whole) - start >= _CHARACTERS_AT_ONCE:
            end = _place_to_cut(whole, start, start + _CHARACTERS_AT_ONCE)
            yield whole[start:end]
            start = end
        waiting = [whole[start:]]
        size = len(waiting[0])
    if size:
        yield "".join(waiting)


def _place_to_cut(text: str, start: int, end: int) -> int:
    """The last place before `end` where a line ends and the next begins with a letter, or a word begins."""
    for mark, shift in (("\n", 1), (" ", 0)):
        place = text.rfind(mark, start + 1, end - 1)
        while place > start:
            beside = text[place + 1] if shift else text[place - 1 : place + 2].replace(" ", "", 1)
            if beside.strip() == beside and beside:
                return place + shift
            place = text.rfind(mark, start + 1, place)
    return end


def packed(
    texts: Iterable[str], tokenizer: Tokenizer, block_size: int, split: str, where: str, notices: list[Notice]
) -> Iterator[Block]:
    """Full blocks of tokens, with the bytes that are predicted in each."""
    ids, sizes = np.zeros(0, np.int32), np.zeros(0, np.int64)
    found = 0
    for text in texts:
        more_ids, more_sizes = tokenizer.pieces(text)
        ids, sizes = np.concatenate([ids, more_ids]), np.concatenate([sizes, more_sizes])
        count = len(ids) // block_size
        if count:
            full = count * block_size
            predicted = sizes[:full].reshape(count, block_size)[:, 1:].sum(1)
            yield Block({"input_ids": ids[:full]}, np.full(count, block_size, np.int64), {"sizes": predicted})
            ids, sizes, found = ids[full:], sizes[full:], found + count
    if not found:
        raise OptionError("block_size", block_size, f"<= {len(ids)}, the tokens of {where}")
    if len(ids):
        text = f"{split}: the last {len(ids):,} tokens, which fill no block of {block_size}, are left out"
        notices.append(Notice("left_out", split, len(ids), text))
