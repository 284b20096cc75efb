"""One-dimensional convolutions: those of two dimensions over an image of one row."""

from typing import Any

import torch
from torch import Tensor, nn

from compresskd.tt.layers.conv import TTConv2d
from compresskd.tt.layers.cp import CPConv2d


class _OneRow:
    """Takes and gives [B, C, L] or [C, L] where the layer beneath takes images; its sizes are those of images."""

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """[out_channels, in_channels, length] of the kernel."""
        out_channels, in_channels, _, length = super().dense_shape  # pyright: ignore
        return out_channels, in_channels, length

    def to_dense(self) -> Tensor:
        """The kernel [O, I, k], differentiable."""
        return super().to_dense().squeeze(2)  # pyright: ignore

    def macs(self, input: Tensor) -> int:
        """Multiply-accumulates for input [B, I, L] or [I, L]."""
        return super().macs(input.unsqueeze(-2))  # pyright: ignore

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, L] or [I, L] to [B, O, L'] or [O, L']."""
        return super().forward(input.unsqueeze(-2)).squeeze(-2)  # pyright: ignore


class TTConv1d(_OneRow, TTConv2d):
    """A one-dimensional convolution as a chain of stages (1, k); options as `TTConv2d`'s."""


class CPConv1d(_OneRow, CPConv2d):
    """A one-dimensional convolution in CP format; options as `CPConv2d`'s."""


def two_dimensional(layer: nn.Module) -> Any:
    """The convolution over an image of one row that an nn.Conv1d is; any other layer as it is."""
    if not isinstance(layer, nn.Conv1d):
        return layer
    convolution = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (1, layer.kernel_size[0]),
        stride=(1, layer.stride[0]),
        padding=layer.padding if isinstance(layer.padding, str) else (0, layer.padding[0]),
        dilation=(1, layer.dilation[0]),
        groups=layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    convolution.weight = nn.Parameter(layer.weight.detach().unsqueeze(2))
    convolution.bias = layer.bias
    return convolution.train(layer.training)


@torch.no_grad()
def one_dimensional(layer: nn.Module) -> nn.Module:
    """The layer over [B, C, L] that holds the very factors of one over images of one row."""
    cls = TTConv1d if isinstance(layer, TTConv2d) else CPConv1d
    assert isinstance(layer, TTConv2d | CPConv2d)
    new = cls.from_structure(layer.structure(), device="meta")
    key = "cores" if isinstance(layer, TTConv2d) else "factors"
    setattr(new, key, getattr(layer, key))
    new.bias = layer.bias
    return new.train(layer.training)
