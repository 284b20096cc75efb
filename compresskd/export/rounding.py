"""Inputs that are rounded to 8 bits, as ONNX says it: QuantizeLinear, then DequantizeLinear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compresskd.quant.activation import CHILD, ActivationQuant


class _QuantizeDequantize(nn.Module):
    """The rounding of an input as the two ONNX operators; unsigned, which is what integer kernels take."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quant: ActivationQuant) -> None:
        super().__init__()
        self.register_buffer("scale", quant.scale.float().reshape(()))
        self.register_buffer("zero_point", (quant.zero_point.int() + 128).to(torch.uint8).reshape(()))

    def forward(self, x: Tensor) -> Tensor:
        """[...] to [...], on the grid."""
        step = (self.scale, self.zero_point)
        q = torch.onnx.ops.symbolic("QuantizeLinear", (x, *step), dtype=torch.uint8, shape=x.shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (q, *step), dtype=x.dtype, shape=x.shape)


@contextlib.contextmanager
def rounding_as_operators(model: nn.Module) -> Iterator[None]:
    """Inside, the input quantizers of the model are the ONNX operators."""
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, CHILD, None), ActivationQuant)]
    before = [getattr(layer, CHILD) for layer in layers]
    try:
        for layer, quant in zip(layers, before, strict=True):
            setattr(layer, CHILD, _QuantizeDequantize(quant))
        yield
    finally:
        for layer, quant in zip(layers, before, strict=True):
            setattr(layer, CHILD, quant)
