"""A tokenizer.json in few bytes: its words as a list, its merges where they follow from the words, and the rest.

Numbers of words are their places in the list. A merge of byte-pair encoding follows from its word where the merges
before it, applied to the word, leave two pieces; so those of a vocabulary in the order in which it was learned do.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from compresskd.artifact.words import pack_words, unpack_words

_MOST_STEPS = 2**24  # of looking at pairs in words: SmolLM2's 49,152 take 5 million
_SCORES = {"<f4": 0, "<f8": 1}  # of the words of a unigram tokenizer


def take_words(about: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What is said of the data, without the words of a tokenizer, and these; as it is where they stay in it."""
    text = _tokenizer_of(about).get("json")
    split = split_tokenizer(text) if isinstance(text, str) else None
    return (dict(about), b"") if split is None else (_with_json(about, split[0]), split[1])


def put_words(about: dict[str, Any], words: bytes) -> dict[str, Any]:
    """What `take_words` was given. Raises ValueError where there is no tokenizer that the words are of."""
    if not words:
        return about
    text = _tokenizer_of(about).get("json")
    if not isinstance(text, str):
        raise ValueError("header: words, and no tokenizer that they are of")
    return _with_json(about, join_tokenizer(text, words))


def without_tokenizer(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the data besides it."""
    rest = {key: value for key, value in about["preprocessing"].items() if key != "tokenizer"}
    return {**about, "preprocessing": rest}


def _tokenizer_of(about: Mapping[str, Any]) -> Mapping[str, Any]:
    found = about.get("preprocessing", {}).get("tokenizer", {})
    return found if isinstance(found, Mapping) else {}


def _with_json(about: Mapping[str, Any], text: str) -> dict[str, Any]:
    tokenizer = {**about["preprocessing"]["tokenizer"], "json": text}
    return {**about, "preprocessing": {**about["preprocessing"], "tokenizer": tokenizer}}


@lru_cache(maxsize=4)  # of a run: each stage is measured several times
def split_tokenizer(text: str) -> tuple[str, bytes] | None:
    """A tokenizer.json without its words, and these; None where the two do not give the same JSON, or are no shorter.

    Returns:
        What `join_tokenizer` takes.
    """
    try:
        value = json.loads(text)
        model = value["model"]
        parts = _without_scores(model) if model.get("type") == "Unigram" else _without_numbers(model)
        rest = json.dumps({**value, "model": parts[0]}, ensure_ascii=False, separators=(",", ":"))
        same = json.loads(join_tokenizer(rest, parts[1])) == value
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # a tokenizer that none of the ways is for
    shorter = len(zlib.compress(rest.encode() + parts[1])) < len(zlib.compress(text.encode()))
    return (rest, parts[1]) if same and shorter else None


def join_tokenizer(rest: str, words: bytes) -> str:
    """The tokenizer.json that `split_tokenizer` was given, as its library writes it.

    Raises:
        ValueError: it cannot be read.
    """
    value = json.loads(rest)
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError("tokenizer: expected a model with a vocabulary")
    size = model["vocab"]
    if model.get("type") == "Unigram":
        model["vocab"] = _with_scores(size, words)
    else:
        listed = unpack_words(words)
        model["vocab"] = {word: number for number, word in enumerate(listed)}
        if size != len(model["vocab"]):
            raise ValueError(f"tokenizer: expected {size!r:.20} different words, got {len(listed)}")
        if model.get("merges", ()) is None:
            model["merges"] = _merges(listed)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _without_numbers(model: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A model whose words have numbers from 0 on."""
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    short = {**model, "vocab": len(words)}
    if model.get("merges") and _merges(words) == model["merges"]:
        short["merges"] = None
    return short, pack_words(words)


def _without_scores(model: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A model whose words have places and scores."""
    scores = np.array([score for _, score in model["vocab"]], "<f8")
    kind = "<f4" if (scores.astype("<f4") == scores).all() else "<f8"
    packed = pack_words([word for word, _ in model["vocab"]])
    # bytes of one place beside each other: the upper ones are much alike
    planes = scores.astype(kind).view(np.uint8).reshape(len(scores), -1).T.tobytes()
    return {**model, "vocab": [len(scores), _SCORES[kind]]}, planes + packed


def _with_scores(size: Any, words: bytes) -> list[list[Any]]:
    kinds = [kind for kind, number in _SCORES.items() if size[1:] == [number]]
    if not kinds or type(size[0]) is not int or not 0 <= size[0] * int(kinds[0][2]) <= len(words):
        raise ValueError(
            f"tokenizer: expected how many words there are and the kind of scores, got {size!r:.80}"
        )
    kind, end = kinds[0], size[0] * int(kinds[0][2])
    planes = np.frombuffer(words[:end], np.uint8).reshape(-1, size[0])
    scores = np.ascontiguousarray(planes.T).view(kind).reshape(-1).astype(float).tolist()
    return [list(pair) for pair in zip(unpack_words(words[end:]), scores, strict=True)]


def _merges(words: Sequence[str]) -> list[list[str]]:
    """The merges that follow from the words. Raises ValueError where to find them would take too long."""
    if sum(len(word) ** 2 for word in words) > _MOST_STEPS:
        raise ValueError("tokenizer: its words are too long for merges to follow from them")
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        if len(word) > 1:
            pieces = tuple(_applied(ranks, word))
            if len(pieces) == 2:
                ranks[pieces] = len(ranks)
    return [list(pair) for pair in ranks]


def _applied(ranks: Mapping[tuple[str, str], int], word: str) -> Iterator[str]:
    """The pieces of a word after all merges but the last that is possible."""
    pieces, none = list(word), len(ranks)
    while len(pieces) > 2:
        found = [ranks.get(pair, none) for pair in pairwise(pieces)]
        first = min(found)
        if first == none:
            break
        place = found.index(first)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    yield from pieces
