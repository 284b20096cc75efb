"""Variants of the training texts as more samples, without labels: what a teacher says of them is all that they need."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from compresskd.data.randomness import generator
from compresskd.data.text.sequences import Sequences
from compresskd.data.text.split import TextSplit
from compresskd.data.text.subwords import smaller_tokens
from compresskd.data.text.tokenizer import Tokenizer

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class _Text:
    """A text between its special tokens; words [n + 1] int64 begin there, and the last one is where they end."""

    ids: Ids
    words: NDArray[np.int64]

    def around(self, pieces: Iterable[Ids]) -> Ids:
        """These tokens in the place of the words, the special ones as they are."""
        return np.concatenate([self.ids[: self.words[0]], *pieces, self.ids[self.words[-1] :]])

    def word(self, k: int) -> Ids:
        return self.ids[self.words[k] : self.words[k + 1]]


def variants(train: TextSplit, tokenizer: Tokenizer, counts: Mapping[str, int], *, seed: int) -> Sequences:
    """Each of KINDS as often of each training text as `counts` says, none twice and none a training text.

    Distillation from such variants is of Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple
    Neural Networks" (arXiv:1903.12136), section 3.2; with words in smaller tokens, of Hiraoka 2022, "MaxMatch-Dropout:
    Subword Regularization for WordPiece" (arXiv:2209.04126). A pure function of the arguments.

    Args:
        train: with `input_ids` alone.
        counts: of a kind, how many are drawn of each text: fewer are left of short ones.
        seed: of the draws.

    Raises:
        ValueError: there are none, as no text has two words, or no word has smaller tokens.
    """
    texts = _texts(train, tokenizer)
    whole = {text.ids.tobytes() for text in texts}
    longest = max(len(text.ids) for text in texts)
    several = [text for text in texts if len(text.words) > 2]
    found: dict[bytes, Ids] = {}
    for kind, count in counts.items():
        for made in KINDS[kind](several, count, seed, tokenizer):
            found.setdefault(made.tobytes(), made)
    kept = [made for key, made in found.items() if key not in whole and len(made) <= longest]
    if not kept:
        asked = " or ".join(counts)
        raise ValueError(
            f"there are no variants ({asked}) of the texts of train: it needs some of two words or more, and subwords "
            "a tokenizer whose words can be cut into smaller tokens"
        )
    bounds = torch.tensor([0, *map(len, kept)]).cumsum(0)
    return Sequences({"input_ids": torch.from_numpy(np.concatenate(kept))}, bounds, {})


def _texts(train: TextSplit, tokenizer: Tokenizer) -> list[_Text]:
    leading, trailing = tokenizer.frame()
    ids, offsets = train.columns["input_ids"].numpy(), train.offsets.numpy()
    texts = []
    for row in train.rows.tolist():
        text = ids[offsets[row] : offsets[row + 1]]
        last = len(text) - trailing
        begins = np.flatnonzero(tokenizer.begin_words(text[leading:last])) + leading
        texts.append(_Text(text, np.append(begins, last)))
    return texts


def _spans(texts: list[_Text], count: int, seed: int, tokenizer: Tokenizer) -> Iterator[Ids]:
    """Runs of consecutive words, of any length and at any place."""
    del tokenizer
    draws = torch.rand(len(texts), count, 2, generator=generator("spans", seed)).numpy()
    for text, drawn in zip(texts, draws, strict=True):
        words = len(text.words) - 1
        for length, place in drawn:
            taken = 1 + int(length * (words - 1))
            start = int(place * (words - taken + 1))
            yield text.around([text.ids[text.words[start] : text.words[start + taken]]])


def _replacements(texts: list[_Text], count: int, seed: int, tokenizer: Tokenizer) -> Iterator[Ids]:
    """Texts in which other words of train, as frequent as they are there, stand for up to half of the words.

    These words are never the first or the last of a text, whose tokens may lack the space before or after them.
    """
    del tokenizer
    drawn = generator("replacements", seed)
    words = [text.word(k) for text in texts for k in range(1, len(text.words) - 2)]
    for text in texts if words else ():
        own = [text.word(k) for k in range(len(text.words) - 1)]
        others = torch.randint(len(words), (count, len(own)), generator=drawn).tolist()
        for other, new in zip(others, _up_to_half(count, len(own), drawn), strict=True):
            yield text.around(
                words[at] if is_new else word for word, at, is_new in zip(own, other, new, strict=True)
            )


def _subwords(texts: list[_Text], count: int, seed: int, tokenizer: Tokenizer) -> Iterator[Ids]:
    """Texts in which up to half of the words are cut as if the tokenizer did not have their tokens."""
    smaller = smaller_tokens(tokenizer, of={number for text in texts for number in text.ids.tolist()})
    drawn = generator("subwords", seed)
    for text in texts if smaller else ():
        own = [text.word(k) for k in range(len(text.words) - 1)]
        cut = [
            np.concatenate([smaller.get(int(word[k]), word[k : k + 1]) for k in range(len(word))])
            for word in own
        ]
        for chosen in _up_to_half(count, len(own), drawn):
            yield text.around(
                less if is_cut else word for word, less, is_cut in zip(own, cut, chosen, strict=True)
            )


def _up_to_half(count: int, words: int, drawn: torch.Generator) -> list[list[bool]]:
    """[count][words] which words of a text are changed: a share of up to a half, another one each time."""
    shares = 0.5 * torch.rand(count, 1, generator=drawn)
    return (torch.rand(count, words, generator=drawn) < shares).tolist()


KINDS = {"spans": _spans, "replacements": _replacements, "subwords": _subwords}


def joined(one: Sequences, other: Sequences) -> Sequences:
    """The samples of both, one after the other, in memory."""
    columns = {name: torch.cat([column, other.columns[name]]) for name, column in one.columns.items()}
    offsets = torch.cat([one.offsets, one.offsets[-1] + other.offsets[1:]])
    return Sequences(columns, offsets, {}, (*one.notices, *other.notices))
