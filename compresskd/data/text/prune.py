"""A tokenizer with fewer tokens: those that texts use, and those that everything else falls to.

Texts of tokens that stay are cut as before: the longest match of WordPiece, the merges of byte-pair encoding in their
order, and the best path of a unigram model are found among what is left.
"""

import json
import re
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from compresskd.data.text.tokenizer import Pieces, Tokenizer
from compresskd.options import OptionError

KEY = "prune_vocabulary"
_SPACE = "▁"  # of sentencepiece, in place of the one before a word
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def pruned(
    tokenizer: Tokenizer, counts: np.ndarray, wanted: bool | int, needed: Collection[int] = ()
) -> tuple[Pieces, np.ndarray]:
    """The tokenizer with some of its tokens, and the number [V] int64 that each of these had.

    Special tokens stay, and the characters of the texts and of ASCII (all bytes where tokens are of bytes), so that a
    word that is left out falls to others. Tokens of WordPiece, where some go, are numbered anew, special ones first and
    the others in alphabetical order, in which they take half the bytes of a file; those of other kinds keep their
    order, which is that of merges or of scores.

    Args:
        counts: [V] how often the texts use each token.
        wanted: True for every token that they use, or how many of those that they use most often.
        needed: tokens that stay besides.

    Raises:
        OptionError: it is a tokenizer whose tokens cannot be left out.
    """
    if not isinstance(tokenizer, Pieces):
        raise OptionError(KEY, wanted, "false: only tokens of a tokenizer.json are left out")
    value = json.loads(tokenizer.describe()["json"])
    model, vocabulary = value["model"], tokenizer.rust.get_vocab(with_added_tokens=True)
    names = {number: token for token, number in vocabulary.items()}
    _check(model, wanted)
    used = np.flatnonzero(counts)
    special = {*needed, tokenizer.padding_id, *map(vocabulary.__getitem__, _special(value))} & names.keys()
    characters = _characters(value, (names[number] for number in used))
    alone = map(vocabulary.__getitem__, _alone(vocabulary, model, characters))
    most = used if wanted is True else used[np.argsort(-counts[used], kind="stable")][:wanted]
    kept = {*most.tolist(), *special, *alone}
    left = {names[number] for number in kept}
    kept |= {number for number in used.tolist() if not left.issuperset(_letters(names[number], model))}
    if model["type"] == "BPE":
        model["merges"] = _merges({names[number] for number in kept}, model)
        kept |= {vocabulary[each] for pair in model["merges"] for each in (*pair, "".join(pair))}
    order = _ordered(kept, special, names, model)
    numbers = {names[old]: new for new, old in enumerate(order)}
    _renumber(value, numbers, [names[old] for old in order])
    padding_id = numbers[names[tokenizer.padding_id]]
    return _made(value, numbers, tokenizer, padding_id, wanted), np.array(order, np.int64)


def _check(model: Mapping[str, Any], wanted: bool | int) -> None:
    kind = model.get("type")
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise OptionError(KEY, wanted, f"false: words of a {kind} tokenizer fall to no others")
    if kind == "BPE" and model.get("continuing_subword_prefix"):
        raise OptionError(KEY, wanted, "false: the merges of this tokenizer have prefixes")


def _special(value: Mapping[str, Any]) -> Iterator[str]:
    """The tokens that are not of texts."""
    model = value["model"]
    yield from (token["content"] for token in value["added_tokens"])
    yield from _mentioned(value.get("post_processor"))
    if model.get("unk_token") in model["vocab"]:
        yield model["unk_token"]
    if model.get("unk_id") is not None:
        yield model["vocab"][model["unk_id"]][0]


def _mentioned(value: Any) -> Iterator[str]:
    """The tokens that are put around a text: of `{"ids": ..., "tokens": ...}`, and of `[token, number]`."""
    if isinstance(value, Mapping):
        yield from value.get("tokens", ()) if "ids" in value else ()
        for each in value.values():
            yield from _mentioned(each)
    elif _is_pair(value):
        yield value[0]
    elif isinstance(value, list):
        for each in value:
            yield from _mentioned(each)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and [type(each) for each in value] == [str, int]


def _characters(value: Mapping[str, Any], used: Iterable[str]) -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    of_bytes = '"ByteLevel"' in json.dumps([value.get("pre_tokenizer"), value.get("decoder")])
    return {*string.printable, *(ByteLevel.alphabet() if of_bytes else ()), *"".join(used)}


def _alone(vocabulary: Iterable[str], model: Mapping[str, Any], characters: set[str]) -> Iterator[str]:
    """The tokens of one character, at any place in a word, and those of bytes."""
    ends = model.get("continuing_subword_prefix") or _SPACE, model.get("end_of_word_suffix") or ""
    for token in vocabulary:
        bare = token.removeprefix(ends[0]).removesuffix(ends[1])
        if token in characters or bare in characters or bare == "" or is_byte(token):
            yield token


def is_byte(token: str) -> bool:
    """Whether a token is that of a byte which no character of the vocabulary has."""
    return _BYTE.fullmatch(token) is not None


def _letters(token: str, model: Mapping[str, Any]) -> list[str]:
    """The tokens of one character that a token falls to where it is left out; none where these are of bytes."""
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        first = prefix if token.startswith(prefix) else ""
        bare = token.removeprefix(first)
        return [(prefix if place else first) + character for place, character in enumerate(bare)]
    return [] if model.get("byte_fallback") else _pieces(token, model)


def _pieces(token: str, model: Mapping[str, Any]) -> list[str]:
    suffix = model.get("end_of_word_suffix") or ""
    bare = token.removesuffix(suffix)
    return [*bare[:-1], bare[-1] + token[len(bare) :]] if bare else [token]


def _merges(kept: set[str], model: Mapping[str, Any]) -> list[list[str]]:
    """The merges by which these tokens are made, in their order."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    taken: set[tuple[str, str]] = set()
    for token in kept:
        pieces, path = _pieces(token, model), []
        while len(pieces) > 1:
            pair = min(pairwise(pieces), key=lambda each: ranks.get(each, len(ranks)))
            if pair not in ranks:
                break
            place = next(i for i, each in enumerate(pairwise(pieces)) if each == pair)
            pieces[place : place + 2] = ["".join(pair)]
            path.append(pair)
        if len(pieces) == 1:  # else it is no token of merges
            taken.update(path)
    return [list(pair) for pair in ranks if pair in taken]


def _ordered(
    kept: set[int], special: set[int], names: Mapping[int, str], model: Mapping[str, Any]
) -> list[int]:
    """The kept tokens in their new order; those that only the tokenizer knows, and not its model, at the end."""
    known = {piece for piece, _ in model["vocab"]} if model["type"] == "Unigram" else model["vocab"].keys()

    def place(number: int) -> tuple[bool, bool, bytes, int]:
        sorts = model["type"] == "WordPiece" and len(kept) < len(names) and number not in special
        return names[number] not in known, sorts, names[number].encode() if sorts else b"", number

    return sorted(kept, key=place)


def _renumber(value: dict[str, Any], numbers: Mapping[str, int], order: Sequence[str]) -> None:
    """Write the new numbers wherever a tokenizer.json has some, in place."""
    model = value["model"]
    if model["type"] == "Unigram":
        unknown = None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
        scores = dict(model["vocab"])
        model["vocab"] = [[token, scores[token]] for token in order if token in scores]
        model["unk_id"] = None if unknown is None else numbers[unknown]
    else:
        model["vocab"] = {token: numbers[token] for token in order if token in model["vocab"]}
    for token in value["added_tokens"]:
        token["id"] = numbers[token["content"]]
    value["post_processor"] = _renumbered(value.get("post_processor"), numbers)


def _renumbered(value: Any, numbers: Mapping[str, int]) -> Any:
    if isinstance(value, Mapping):
        found = {key: _renumbered(each, numbers) for key, each in value.items()}
        return {**found, "ids": [numbers[token] for token in value["tokens"]]} if "ids" in value else found
    if _is_pair(value):
        return [value[0], numbers[value[0]]]
    return [_renumbered(each, numbers) for each in value] if isinstance(value, list) else value


def _made(
    value: dict[str, Any], numbers: Mapping[str, int], like: Pieces, padding_id: int, wanted: bool | int
) -> Pieces:
    """Raises OptionError where the library numbers tokens otherwise."""
    from tokenizers import Tokenizer as Rust

    value["added_tokens"].sort(key=lambda token: token["id"])
    rust = Rust.from_str(json.dumps(value))
    if rust.get_vocab(with_added_tokens=True) != numbers:
        raise OptionError(KEY, wanted, "false: the tokens of this tokenizer cannot be numbered anew")
    return Pieces(rust, padding_id, like.max_length, like.has_types)
