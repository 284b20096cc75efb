"""The smaller tokens that stand for one where a tokenizer does not have it."""

from collections.abc import Container, Mapping

import numpy as np

from compresskd.data.text.prune import is_byte
from compresskd.data.text.tokenizer import Pieces, Tokenizer


def smaller_tokens(tokenizer: Tokenizer, of: Container[int] | None = None) -> dict[int, np.ndarray]:
    """By the number of a token, those [>= 2] int32 that spell the same: the longest first, as WordPiece takes them.

    What WordPiece makes of a word without that token; of the tokens of other models it is one way among several. Tokens
    that no others spell are left out, and so are special ones, bytes and whole characters.

    Args:
        of: the tokens that are asked for; all, where it is None.
    """
    if not isinstance(tokenizer, Pieces):
        return {}
    model = tokenizer.rust.model
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""
    added = tokenizer.rust.get_added_tokens_decoder()
    tokens = {
        token: number
        for token, number in tokenizer.rust.get_vocab(with_added_tokens=False).items()
        if number not in added and not is_byte(token)
    }
    asked = {token: number for token, number in tokens.items() if of is None or number in of}
    found = {number: _spelled(token, tokens, prefix, suffix) for token, number in asked.items()}
    return {number: np.array(parts, np.int32) for number, parts in found.items() if len(parts) > 1}


def _spelled(token: str, tokens: Mapping[str, int], prefix: str, suffix: str) -> list[int]:
    """Numbers of smaller tokens that are this one together; empty where there are none."""
    parts: list[int] = []
    rest = token
    while rest:
        least = len(prefix) + 1 if prefix and rest.startswith(prefix) else 1
        most = min(len(rest.removesuffix(suffix)), len(rest) - 1)
        ends = [*([len(rest)] if parts else []), *range(most, least - 1, -1)]
        end = next((end for end in ends if rest[:end] in tokens), None)
        if end is None:
            return []
        parts.append(tokens[rest[:end]])
        rest = prefix + rest[end:] if end < len(rest) else ""
    return parts
