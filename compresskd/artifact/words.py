"""Lists of words in few bytes: those of a tokenizer, in the order of their numbers.

A byte below 32, then UTF-8: how many bytes a word begins with that the one before begins with too, and the rest of
it. Words in alphabetical order are written so; any others after a zero each. The whole is compressed by bz2 or lzma,
whichever is shorter, behind one byte that says which.
"""

import bz2
import lzma
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_LONGEST = 31  # bytes that a word can have in common with the one before
_WORD = re.compile(rb"[\x00-\x1f][^\x00-\x1f]*")
# the shorter contexts suit words better than the default of lzma
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
_BZ2, _LZMA = 0, 1
_AT_FIRST, _RATIO = (
    2**20,
    32,
)  # bytes that may come of any list, and of each byte of one: vocabularies come to 3


def pack_words(words: Sequence[str]) -> bytes:
    """The words in order.

    Raises:
        ValueError: a word has a control character in it.
    """
    coded = [word.encode() for word in words]
    if any(byte < 32 for word in coded for byte in word):
        raise ValueError("expected words without control characters")
    shared = [0, *(_in_common(*pair) for pair in pairwise(coded))]
    plain = b"".join(b"\0" + word for word in coded)
    short = b"".join(bytes([count]) + word[count:] for count, word in zip(shared, coded, strict=False))
    return min((_compressed(data, way) for data in (plain, short) for way in (_BZ2, _LZMA)), key=len)


def unpack_words(data: bytes) -> list[str]:
    """What `pack_words` was given.

    Raises:
        ValueError: it cannot be read, or is larger than lists of so many bytes are.
    """
    body = _decompressed(data)
    entries = _WORD.findall(body)
    if sum(map(len, entries)) != len(body):
        raise ValueError("words: expected each to begin with a byte below 32")
    words: list[bytes] = []
    last, left = b"", _AT_FIRST + _RATIO * len(body)  # bytes in common are written once and may be read often
    for entry in entries:
        if entry[0] > len(last):
            raise ValueError(f"words: word {len(words)} shares {entry[0]} bytes with one of {len(last)}")
        last = last[: entry[0]] + entry[1:]
        left -= len(last)
        words.append(last)
    if left < 0:
        raise ValueError("words: they are out of proportion")
    return [word.decode() for word in words]


def _in_common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with, as far as they are counted."""
    most = min(_LONGEST, len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)


def _compressed(data: bytes, way: int) -> bytes:
    if way == _BZ2:
        return bytes([way]) + bz2.compress(data)
    return bytes([way]) + lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS)


def _decompressed(data: bytes) -> bytes:
    if not data or data[0] not in (_BZ2, _LZMA):
        raise ValueError(f"words: expected {_BZ2} or {_LZMA} as the first byte, got {data[:1]!r}")
    decoder: Any = (
        bz2.BZ2Decompressor() if data[0] == _BZ2 else lzma.LZMADecompressor(lzma.FORMAT_RAW, None, _FILTERS)
    )
    try:
        body = decoder.decompress(data[1:], _AT_FIRST + _RATIO * len(data))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"words: they cannot be decompressed: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise ValueError("words: they do not end where their bytes do, or are out of proportion")
    return body
