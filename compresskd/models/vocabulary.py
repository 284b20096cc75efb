"""Whether embeddings have a row for every token that the data hold, and models the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compresskd.options import OptionError


def rows_of(model: nn.Module) -> int | None:
    """How many tokens a model of transformers knows; None where it does not say."""
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    return getattr(embedding, "num_embeddings", None)


def check_vocabulary(model: nn.Module, vocabulary_size: int) -> None:
    """Raise OptionError where the tokenizer of the data has more tokens than the model has rows for."""
    rows = rows_of(model)
    if rows is not None and rows < vocabulary_size:
        remedy = "write data.tokenizer with that of the model, or config.vocab_size for a fresh one"
        raise OptionError(
            "config.vocab_size", rows, f">= {vocabulary_size}, the tokens of the data; {remedy}"
        )


def check_same_vocabulary(models: Mapping[str, nn.Module | None]) -> None:
    """Raise OptionError where a student and its teacher give probabilities to other sets of tokens."""
    rows = {role: rows_of(model) for role, model in models.items() if model is not None}
    theirs, ours = rows.get("teacher"), rows.get("student")
    if theirs is not None and ours is not None and theirs != ours:
        expected = f"{theirs}, as the teacher has: their outputs are compared token by token"
        raise OptionError("config.vocab_size", ours, expected)
