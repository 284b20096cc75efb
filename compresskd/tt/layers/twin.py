"""Layers with tied weights: one set of factors in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compresskd import layers
from compresskd.tt.decompose.skipped import Skipped
from compresskd.tt.layers.conv1d import two_dimensional
from compresskd.tt.layers.embedding import TTEmbedding
from compresskd.tt.layers.linear import TTLinear
from compresskd.tt.layers.padded_rows import scale_of
from compresskd.tt.layers.structure import from_structure

# what of a structure is a convolution's own; the rest is that of its factors
_OF_CONVOLUTION = ("stride", "padding", "dilation", "padding_mode")


def twin(layer: Any, like: Any) -> nn.Module | Skipped:
    """A layer in the form of `layer`, holding its very factors, for `like`, whose weight is the same.

    An embedding [V, D] and a linear layer from D to V features have the same tensor train: rows are the vocabulary.
    The padding row of an embedding is then what the cores say, for another layer trains it. Otherwise both are of
    one kind.

    Args:
        layer: a factorized layer.
        like: the ordinary or factorized layer that it is made for; the new one has a copy of its bias.
    """
    structure = layer.structure()
    if isinstance(like, nn.Embedding | TTEmbedding):
        structure = _of_embedding(structure, layer, like)
    elif isinstance(layer, TTEmbedding):
        structure = _of_linear(structure)
    if structure is None:
        return Skipped(f"tied with an embedding, which has no form of the kind {type(layer).__name__}")
    if "stride" in structure:
        geometry = two_dimensional(like)
        structure |= {key: _plain(getattr(geometry, key)) for key in _OF_CONVOLUTION}
    bias = layers.effective(like, "bias")
    made: Any = from_structure({**structure, "bias": bias is not None})
    made.to(next(layer.parameters()))
    for key in (*layers.WEIGHTS, "chosen"):  # the last of an interpolative layer
        if hasattr(layer, key):
            setattr(made, key, getattr(layer, key))
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def _of_embedding(structure: dict[str, Any], layer: Any, like: Any) -> dict[str, Any] | None:
    own = {"padding_idx": like.padding_idx, "sparse": like.sparse}
    own |= {} if like.padding_idx is None else {"padding": "cores"}
    own |= {"scale": scale_of(like)}
    if isinstance(layer, TTEmbedding):
        return {**structure, **own}
    if not isinstance(layer, TTLinear):
        return None
    return {
        "class": "TTEmbedding",
        "num_embeddings": structure["out_features"],
        "embedding_dim": structure["in_features"],
        "vocabulary_dims": structure["output_dims"],
        "embedding_dims": structure["input_dims"],
        "ranks": structure["ranks"],
        **own,
    }


def _of_linear(structure: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "class": "TTLinear",
        "in_features": structure["embedding_dim"],
        "out_features": structure["num_embeddings"],
        "input_dims": structure["embedding_dims"],
        "output_dims": structure["vocabulary_dims"],
        "ranks": structure["ranks"],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
