"""One small layer of every kind, with inputs: what tests of all layers go through."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.grid import Grid
from compresskd.tt import (
    CPConv2d,
    CPLinear,
    GroupedEmbedding,
    InterpolativeLinear,
    TTConv2d,
    TTEmbedding,
    TTLinear,
    TuckerLinear,
)

STAGES = ((1, 1), (3, 3), (1, 1))


@dataclass(frozen=True)
class Case:
    """A layer's maker and an input; every call of `make` gives fresh values."""

    make: Any
    x: Tensor


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def ids(size: int, *shape: int) -> Tensor:
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(0))


CASES = {
    "linear": Case(lambda: TTLinear((4, 8), (8, 4), 3), rows(5, 32)),
    "linear, batch": Case(lambda: TTLinear((8, 16), (16, 8), 16), rows(256, 128)),
    "linear, sequence": Case(lambda: TTLinear((4, 8), (8, 4), 3), rows(2, 3, 32)),
    "linear, padded": Case(lambda: TTLinear((4, 8), (8, 4), 3, in_features=30, out_features=31), rows(5, 30)),
    "linear, three cores": Case(lambda: TTLinear((2, 4, 4), (4, 4, 2), 3, bias=False), rows(5, 32)),
    "linear, low rank": Case(lambda: TTLinear((1, 256), (256, 1), 3), rows(5, 256)),
    "convolution": Case(lambda: TTConv2d(8, 8, STAGES, 4, padding=1), rows(2, 8, 6, 6)),
    "convolution, large": Case(lambda: TTConv2d(64, 64, STAGES, 8, padding=1), rows(1, 64, 16, 16)),
    "embedding": Case(lambda: TTEmbedding(30, 16, (5, 6), (4, 4), 3), ids(30, 2, 7)),
    "embedding, few": Case(lambda: TTEmbedding(30, 16, (5, 6), (4, 4), 3), ids(30, 2)),
    "embedding, three cores": Case(
        lambda: TTEmbedding(30, 16, (2, 3, 5), (2, 2, 4), 3, padding_idx=3), ids(30, 2, 7)
    ),
    "embedding, groups": Case(
        lambda: GroupedEmbedding(30, 16, (2, 7, 21), (2, 5, 3), padding_idx=3), ids(30, 2, 7)
    ),
    "tucker": Case(lambda: TuckerLinear((4, 8), (8, 4), (3, 3, 3, 3)), rows(5, 32)),
    "interpolative": Case(lambda: InterpolativeLinear(32, 24, (5,)), rows(5, 32)),
    "cp": Case(lambda: CPLinear((4, 8), (8, 4), 3), rows(5, 32)),
    "cp convolution": Case(lambda: CPConv2d(8, 8, (3, 3), 4, padding=1), rows(2, 8, 6, 6)),
}


def quantized(layer: nn.Module) -> nn.Module:
    """The layer with all its cores or factors rounded as they are read."""
    for name in ("cores", "factors"):
        for key, value in list(getattr(layer, name, nn.ParameterList()).named_parameters()):
            holder = getattr(layer, name)
            nn.utils.parametrize.register_parametrization(holder, key, FakeQuant(value, Grid(4)))
    return layer.eval()
