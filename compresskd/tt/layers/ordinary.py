"""From a factorized layer to the ordinary one of its weight."""

from typing import Any

from torch import nn


def ordinary(layer: Any) -> nn.Linear | nn.Conv2d | nn.Embedding:
    """A plain layer that holds `layer.to_dense()` and a copy of its bias, in its mode of training."""
    weight, bias = layer.to_dense().detach(), getattr(layer, "bias", None)
    options: dict[str, Any] = {"device": "meta", "dtype": weight.dtype}
    if hasattr(layer, "num_embeddings"):
        new: Any = nn.Embedding(*weight.shape, padding_idx=layer.padding_idx, sparse=layer.sparse, **options)
    elif hasattr(layer, "geometry"):
        shape, geometry = weight.shape, layer.geometry
        new = nn.Conv2d(
            shape[1],
            shape[0],
            geometry.kernel_size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            bias=bias is not None,
            padding_mode=geometry.padding_mode,
            **options,
        )
    else:
        new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, **options)
    new.weight = nn.Parameter(weight.clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
    return new.train(layer.training)
