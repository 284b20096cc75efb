"""From raw text to what a model takes, by what `Data.preprocessing` says: the same as the training data were."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compresskd.data.text.tokenizer import Encoded, described
from compresskd.tasks import Inputs


def inputs_of(
    preprocessing: Mapping[str, Any],
    texts: Sequence[Any],
    pairs: Sequence[str] | None = None,
) -> Inputs:
    """Inputs of a batch of texts, as a split would give them.

    Args:
        preprocessing: of the kind "text", "tokens" or "text_blocks".
        texts: strings; for "tokens" lists of words.
        pairs: second texts, where the data had them.

    Raises:
        ValueError: for other preprocessing, no text, an empty one, or a pair that is missing or not expected.
    """
    kind = preprocessing.get("kind")
    if kind not in ("text", "tokens", "text_blocks"):
        raise ValueError(f"expected the preprocessing of texts, got {kind!r}")
    if not texts or not all(texts):
        raise ValueError("expected one text or more, and none of them empty")
    expects_pairs = kind == "text" and len(preprocessing["columns"]) > 1
    if expects_pairs != (pairs is not None):
        raise ValueError(f"expected {'two texts' if expects_pairs else 'one text'} for each sample")
    encoded = _encoded(preprocessing, texts, pairs)
    longest = max(len(each.ids) for each in encoded)
    fill = {"input_ids": preprocessing["padding_id"], "token_type_ids": 0, "attention_mask": 0}
    found = {}
    for name in preprocessing["inputs"]:
        found[name] = torch.full((len(encoded), longest), fill[name], dtype=torch.int64)
        for row, each in enumerate(encoded):
            found[name][row, : len(each.ids)] = torch.from_numpy(_values(name, each))
    return found


def _encoded(
    preprocessing: Mapping[str, Any], texts: Sequence[Any], pairs: Sequence[str] | None
) -> list[Encoded]:
    tokenizer, max_length = described(preprocessing["tokenizer"]), preprocessing["max_length"]
    if preprocessing["kind"] == "tokens":
        return tokenizer.encode_words(texts, max_length)
    if preprocessing["kind"] == "text":
        return tokenizer.encode(texts, pairs, max_length)
    ids = [tokenizer.pieces(text)[0][:max_length] for text in texts]
    if len({len(each) for each in ids}) > 1:
        raise ValueError("expected texts of one number of tokens: the model was trained without padding")
    return [Encoded(each, each * 0, truncated=False) for each in ids]


def _values(name: str, encoded: Encoded) -> Any:
    if name == "input_ids":
        return encoded.ids.astype("int64")
    return (
        encoded.types.astype("int64") if name == "token_type_ids" else (encoded.ids * 0 + 1).astype("int64")
    )
