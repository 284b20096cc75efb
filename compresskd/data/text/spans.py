"""Pieces of the training texts as more samples, without labels."""

import numpy as np
import torch

from compresskd.data.randomness import generator
from compresskd.data.text.sequences import Sequences
from compresskd.data.text.split import TextSplit
from compresskd.data.text.tokenizer import Tokenizer


def spans(train: TextSplit, tokenizer: Tokenizer, count: int, *, seed: int) -> Sequences:
    """`count` runs of consecutive words of each training text, of any length and at any place, each once.

    What a teacher says of them tells a student how the words of a sentence make up its class: distillation from
    sampled n-grams is of Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks"
    (arXiv:1903.12136), section 3.2. The special tokens of a text stand around each. A pure function of the arguments.

    Args:
        train: with `input_ids` alone.
        count: drawn of each text; those that are drawn twice, or are whole texts, are left out.
        seed: of the draws.
    """
    leading, trailing = tokenizer.frame()
    draws = torch.rand(len(train), count, 2, generator=generator("spans", seed)).numpy()
    ids, offsets = train.columns["input_ids"].numpy(), train.offsets.numpy()
    found: dict[bytes, np.ndarray] = {}
    whole: set[bytes] = set()
    for row, drawn in zip(train.rows.tolist(), draws, strict=True):
        text = ids[offsets[row] : offsets[row + 1]]
        first, last = leading, len(text) - trailing
        whole.add(text.tobytes())
        starts = np.flatnonzero(tokenizer.begin_words(text[first:last])) + first
        if len(starts) < 2:
            continue
        ends = np.append(starts[1:], last)
        for length, place in drawn:
            num = 1 + int(length * (len(starts) - 1))
            start = int(place * (len(starts) - num + 1))
            piece = text[starts[start] : ends[start + num - 1]]
            made = np.concatenate([text[:first], piece, text[last:]])
            found.setdefault(made.tobytes(), made)
    kept = [piece for key, piece in found.items() if key not in whole]
    if not kept:
        raise ValueError("no text of train has two words or more: there are no pieces of them")
    bounds = torch.tensor([0, *(len(piece) for piece in kept)]).cumsum(0)
    return Sequences({"input_ids": torch.from_numpy(np.concatenate(kept))}, bounds, {})


def joined(one: Sequences, other: Sequences) -> Sequences:
    """The samples of both, one after the other, in memory."""
    columns = {name: torch.cat([column, other.columns[name]]) for name, column in one.columns.items()}
    offsets = torch.cat([one.offsets, one.offsets[-1] + other.offsets[1:]])
    return Sequences(columns, offsets, {}, (*one.notices, *other.notices))
