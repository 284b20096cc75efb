"""From a factorized layer to the ordinary one of its weight."""

import functools
from typing import Any

from torch import Tensor, nn


class _Scaled(nn.Embedding):
    """Multiplies its rows."""

    def __init__(self, scale: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


def ordinary(layer: Any) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding:
    """A plain layer that holds `layer.to_dense()` and a copy of its bias, in its mode of training."""
    weight, bias = layer.to_dense().detach(), getattr(layer, "bias", None)
    options: dict[str, Any] = {"device": "meta", "dtype": weight.dtype}
    if hasattr(layer, "num_embeddings"):
        kind = nn.Embedding if layer.scale == 1.0 else functools.partial(_Scaled, layer.scale)
        new: Any = kind(*weight.shape, padding_idx=layer.padding_idx, sparse=layer.sparse, **options)
    elif hasattr(layer, "geometry"):
        geometry, dims = layer.geometry, weight.dim() - 2
        new = (nn.Conv1d if dims == 1 else nn.Conv2d)(
            layer.in_channels,
            layer.out_channels,
            geometry.kernel_size[-dims:],
            geometry.stride[-dims:],
            geometry.padding if isinstance(geometry.padding, str) else geometry.padding[-dims:],
            geometry.dilation[-dims:],
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
