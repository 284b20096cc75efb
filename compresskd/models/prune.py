"""Models of transformers with the rows of some tokens alone, of the embedding and of the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.models.build import build, spec_of
from compresskd.models.huggingface import configuration, is_of_transformers
from compresskd.models.vocabulary import rows_of
from compresskd.options import OptionError

_NUMBERS = "_token_id"  # how options of a configuration end that are numbers of tokens


def with_tokens(model: nn.Module, kept: Sequence[int], seed: int = 0) -> nn.Module:
    """The same model for a tokenizer that numbers these tokens, in this order, from 0.

    For texts of these tokens it computes what it did; a language model gives no probability to the others. A model
    that has as many rows already is returned as it is.

    Args:
        model: of `huggingface` or `from_config`.
        kept: the number of each token in the model.
        seed: of the parameters before they are those of the model.

    Raises:
        OptionError: it is no model of transformers, has too few rows, or one whose rows cannot be told by its shapes.
    """
    rows = rows_of(model)
    if rows == len(kept):
        return model
    spec = spec_of(model)
    if rows is None or not is_of_transformers(spec):
        expected = "a model of transformers (teacher=huggingface): data.prune_vocabulary leaves rows out"
        raise OptionError("", type(model).__name__, expected)
    if rows <= max(kept):
        expected = f"> {max(kept)}, the largest number of a token that stays"
        raise OptionError("config.vocab_size", rows, expected)
    _check_padding(model, rows, kept)
    kwargs = {**spec["kwargs"], "config": _configured(spec["kwargs"]["config"], kept)}
    made: Any = build(spec["target"], kwargs, seed=seed)
    state = model.state_dict()
    if rows_of(made) != len(kept):
        kind = spec["kwargs"]["config"].get("model_type")
        raise OptionError("config.model_type", kind, "an architecture with a vocab_size of its own")
    taken = {name: _rows(name, state[name], new, rows, kept) for name, new in made.state_dict().items()}
    made.load_state_dict(taken)
    if hasattr(model, "fresh_parameters"):
        made.fresh_parameters = model.fresh_parameters
    return made.train(model.training)


def _configured(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The configuration with its tokens numbered anew; None for those that are left out."""
    numbers = {old: new for new, old in enumerate(kept)}

    def anew(value: Any) -> Any:
        return [anew(each) for each in value] if isinstance(value, list) else numbers.get(value)

    names = configuration(dict(config)).attribute_map
    renumbered = {key: anew(value) for key, value in config.items() if key.endswith(_NUMBERS)}
    return {**config, **renumbered, names.get("vocab_size", "vocab_size"): len(kept)}


def _rows(name: str, old: Tensor, new: Tensor, rows: int, kept: Sequence[int]) -> Tensor:
    """Those of `old` that `new` has, in each dimension in which they differ."""
    index = torch.tensor(kept, dtype=torch.int64)
    for dimension, (had, has) in enumerate(zip(old.shape, new.shape, strict=True)):
        if had != has:
            if (had, has) != (rows, len(kept)):
                expected = f"a tensor with a dimension of {rows} tokens, not {list(old.shape)}"
                raise OptionError("", name, expected)
            old = old.index_select(dimension, index)
    return old


def _check_padding(model: nn.Module, rows: int, kept: Sequence[int]) -> None:
    """Raise OptionError where positions are counted from the number of the padding, and that is another now."""
    for name, module in model.named_modules():
        number = getattr(module, "padding_idx", None)
        is_table = hasattr(module, "embedding_dim") and getattr(module, "num_embeddings", None) != rows
        if is_table and number is not None and list(kept[number : number + 1]) != [number]:
            expected = f"{number} as the padding that is left: positions are counted from it"
            raise OptionError("", name, expected)
