"""Texts as tokens, of a tokenizer that may be left those alone which the training text uses."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compresskd.data.notice import Notice
from compresskd.data.text.assemble import SetOptions, parts_of
from compresskd.data.text.prune import KEY, pruned
from compresskd.data.text.sequences import Sequences
from compresskd.data.text.tokenizer import Tokenizer
from compresskd.data.vocabulary import Vocabulary
from compresskd.options import OptionError
from compresskd.tasks import IGNORED

Sources = Mapping[str, Sequences]


@dataclass(frozen=True, eq=False)
class Tokenized:
    """The tokens of each split, with the tokenizer that they are of."""

    sources: Sources
    tokenizer: Tokenizer
    vocabulary: Vocabulary | None = None
    notices: tuple[Notice, ...] = ()


def tokenized(
    tokenizer: Tokenizer,
    options: SetOptions,
    read: Callable[[Tokenizer], Sources],
    *,
    needed: Collection[int] = (),
    predicted: bool = False,
    contiguous: bool = False,
) -> Tokenized:
    """What `read` makes of the texts by a tokenizer: by this one, or by one of the tokens that the training text uses.

    Args:
        needed: tokens that stay besides.
        predicted: whether a model's outputs are the tokens.
        contiguous: as `assemble_texts` takes it.

    Raises:
        OptionError: `prune_vocabulary` does not go with the tokenizer or with another option.
    """
    wanted = options.get(KEY, False)
    sources = read(tokenizer)
    if wanted is False:
        return Tokenized(sources, tokenizer)
    if predicted and (declared := options.get("num_classes")) is not None:
        raise OptionError("num_classes", declared, f"null: data.{KEY} says how many tokens are left")
    rows = {split: rows for split, (_, rows) in parts_of(sources, options, contiguous=contiguous).items()}
    counts = {
        split: _counts(sources.get(split, sources["train"]), each, tokenizer.vocabulary_size)
        for split, each in rows.items()
    }
    seen = counts["train"]
    if "unlabelled" in sources:
        alone = sources["unlabelled"]
        seen = seen + _counts(alone, torch.arange(len(alone)), tokenizer.vocabulary_size)
    made, kept = pruned(tokenizer, seen, wanted, needed)
    lost = {split: 1 - float(each[kept].sum() / max(1, each.sum())) for split, each in counts.items()}
    vocabulary = Vocabulary(kept, tokenizer.vocabulary_size, tokenizer.describe(), tokenizer.padding_id, lost)
    return Tokenized(read(made), made, vocabulary, (_told(vocabulary, predicted),))


def _told(vocabulary: Vocabulary, predicted: bool) -> Notice:
    left_out = vocabulary.size - len(vocabulary.kept)
    shares = ", ".join(f"{100 * share:.2g}% of {split}" for split, share in vocabulary.lost.items())
    stay = f"{len(vocabulary.kept):,} of {vocabulary.size:,} tokens stay (data.{KEY})"
    text = f"{stay}; others stand for {shares}"
    if predicted:
        text += "; losses and perplexities are over the tokens that stay, bits per byte are comparable"
    return Notice("pruned_vocabulary", None, left_out, text)


def _counts(source: Sequences, rows: Tensor, size: int) -> np.ndarray:
    """[V] int64, how often each token is in these samples, and asked of a decoder."""
    found = source.counts(rows, size)
    targets = source.more.get("targets")
    if targets is not None and targets.ndim == 2 and targets.dtype == torch.int32:
        asked = targets[rows]
        found = found + np.bincount(asked[asked != IGNORED].numpy(), minlength=size)
    return found
