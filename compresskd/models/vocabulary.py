"""Whether models take the tokens that the data hold: how many, how large, and the same in teacher and student."""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.options import OptionError
from compresskd.tasks import Inputs, call

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


def is_padded(preprocessing: Mapping[str, Any]) -> bool:
    """Whether texts of different lengths make a batch."""
    return "attention_mask" in preprocessing.get("inputs", ())


def check_padding(model: nn.Module, named: str, preprocessing: Mapping[str, Any], ids: Tensor) -> None:
    """Raise OptionError where a model of transformers would take tokens of the texts for padding.

    Such a model is told what fills up a batch: it learns nothing of that token, and may find the end of a text by it.

    Args:
        named: the tokenizer, as the user names it.
        preprocessing: of the data.
        ids: [T] tokens of its texts.
    """
    described, padding_id = preprocessing["tokenizer"], preprocessing["padding_id"]
    is_told = getattr(getattr(model, "config", None), "pad_token_id", None) == padding_id
    if not (is_told and is_padded(preprocessing)):
        return
    own = json.loads(described["json"])["added_tokens"] if "json" in described else []
    if padding_id in [token["id"] for token in own] or not bool((ids == padding_id).any()):
        return
    expected = (
        f"one with a padding token: token {padding_id} fills up batches, and stands in the texts as well"
    )
    write = (
        "write a pad_token into its tokenizer_config.json"
        if "json" in described
        else "write data.tokenizer=bytes"
    )
    raise OptionError("tokenizer", named, f"{expected}; {write}")


def remedy(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    """What to write where a model raised `error` for tokens: other tokens, or fewer; empty where neither is known."""
    if isinstance(inputs, Tensor) or "input_ids" not in inputs:
        return ""
    small = {**inputs, "input_ids": torch.zeros_like(inputs["input_ids"])}
    if takes(model, small):
        return f"; {_REMEDY}" if isinstance(error, IndexError) else ""
    length = small["input_ids"].shape[1]
    taken = bisect(
        range(1, length), 0, key=lambda count: not takes(model, {k: x[:, :count] for k, x in small.items()})
    )
    key = "data.max_length" if "attention_mask" in inputs else "data.block_size"
    return f"; write {key}={taken}, the longest that it takes" if taken else ""


@torch.no_grad()
def takes(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model can be called with these inputs."""
    try:
        call(model, inputs)
    except Exception:  # a model may be the user's own code
        return False
    return True


def _tokens(text: str) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
