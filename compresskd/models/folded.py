"""What is left of a batch norm whose statistics are part of the layer before it."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn


class FoldedBatchNorm(nn.Module):
    """y = x * scale + bias by channel: x [B, C, ...], scale and bias [C], each of them there or not.

    A batch norm in evaluation mode is this with scale = weight / sqrt(var + eps), bias - mean * scale. Where the
    layer before takes the scale into its weights, or the bias into its own, nothing of it is left here.
    """

    def __init__(
        self,
        num_features: int,
        *,
        scale: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        for name, there in (("scale", scale), ("bias", bias)):
            vector = torch.zeros(num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(vector) if there else None)
        self.scale: nn.Parameter | None
        self.bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same shape."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        if self.scale is not None:
            x = x * self.scale.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any]) -> Self:
        """The module of that structure with all parameters zero."""
        return cls(structure["num_features"], scale=structure["scale"], bias=structure["bias"])

    def structure(self) -> dict[str, Any]:
        """All that is needed to build the empty module again, in plain values."""
        return {
            "num_features": self.num_features,
            "scale": self.scale is not None,
            "bias": self.bias is not None,
        }

    def extra_repr(self) -> str:
        """Channels, and what is applied."""
        return f"{self.num_features}, scale={self.scale is not None}, bias={self.bias is not None}"
