"""How much of msgpack is structure, and how much text: a tokenizer of megabytes is no fault, a million lists are."""

from __future__ import annotations

# By first byte: bytes of the token that are no text, and bytes that say how long a text or a blob after them is.
_FIXED = {
    0xCA: 5, 0xCB: 9,  # floats
    0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,  # integers
    0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18,  # extensions of fixed size
    0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5,  # arrays and maps
}  # fmt: skip
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # blobs and texts


def structure_bytes(data: bytes, at_most: int) -> int:
    """Bytes of msgpack that are not inside texts and blobs; more than `at_most` where the scan ended there.

    Tokens follow each other, those of a container after its own, so that nothing is nested here. What is no msgpack is
    left to whoever reads it.
    """
    place = found = 0
    while place < len(data) and found <= at_most:
        first = data[place]
        if 0xA0 <= first <= 0xBF:
            token, text = 1, first & 0x1F
        elif first in _LENGTHS:
            size = _LENGTHS[first]
            token, text = 1 + size, int.from_bytes(data[place + 1 : place + 1 + size], "big")
        else:
            token, text = _FIXED.get(first, 1), 0
        found += token
        place += token + text
    return found
