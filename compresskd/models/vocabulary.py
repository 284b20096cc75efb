"""Whether embeddings have a row for every token that the data hold, and models the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compresskd.options import OptionError

_REMEDY = "write data.tokenizer=DIR with that of the model"


def rows_of(model: nn.Module) -> int | None:
    """How many tokens a model of transformers knows; None where it does not say."""
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    return getattr(embedding, "num_embeddings", None)


def check_vocabulary(model: nn.Module, vocabulary_size: int) -> None:
    """Raise OptionError where the tokenizer of the data has more tokens than the model has rows for."""
    rows = rows_of(model)
    if rows is not None and rows < vocabulary_size:
        expected = f">= {vocabulary_size}, the tokens of the data; {_REMEDY}"
        raise OptionError("config.vocab_size", rows, expected)


def check_same_vocabulary(models: Mapping[str, nn.Module | None]) -> None:
    """Raise OptionError where a student and its teacher give probabilities to other sets of tokens."""
    rows = {role: rows_of(model) for role, model in models.items() if model is not None}
    theirs, ours = rows.get("teacher"), rows.get("student")
    if theirs is not None and ours is not None and theirs != ours:
        expected = f"{theirs}, as the teacher has: their outputs are compared token by token"
        raise OptionError("config.vocab_size", ours, expected)


def check_tokenizer(folder: Path, described: Mapping[str, Any]) -> None:
    """Raise OptionError where the tokenizer of the data numbers tokens otherwise than that beside a model's weights.

    Args:
        folder: with the weights; where it has no tokenizer.json, nothing is known.
        described: the tokenizer of the data, as `Data.preprocessing` has it.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    theirs = _tokens(file.read_text(encoding="utf-8"))
    ours = _tokens(described["json"]) if "json" in described else {}
    other = next((token for token, number in theirs.items() if ours.get(token) != number), None)
    if other is not None:
        found = f"{other!r} is token {theirs[other]} there and {ours.get(other, 'none')} in the data"
        raise OptionError("id", str(folder), f"a model of the tokens of the data ({found}); {_REMEDY}")


def _tokens(text: str) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
