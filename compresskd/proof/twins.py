"""The dense layer for which a factorized or rounded one stands, and how far rounding may move its weight."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd import layers, tt
from compresskd.quant.activation import CHILD, ActivationQuant, quantize_input

_SHORT_FACTORS = 2.0**-11  # unit of rounding on devices that may shorten the factors of a product


def carrying(original: nn.Module, new: nn.Module, *, bias: bool = False) -> nn.Module:
    """A copy of `original` that carries the weight that `new` comes to; where it is factorized itself, a dense layer.

    Args:
        bias: take the bias of `new`, too, which is meant to be another (rounded, or fresh).

    Inputs that `new` rounds are rounded by the copy.
    """
    if hasattr(original, "to_dense"):
        twin: Any = tt.ordinary(new)
    elif isinstance(
        original, nn.MultiheadAttention
    ):  # whose weights, biases and inner layer one operation reads
        twin = _plain_copy(new)
    else:
        twin = _plain_copy(original)
        held = layers.held_by(original, new.to_dense()) if hasattr(new, "to_dense") else new.weight  # pyright: ignore
        if held is None:  # the original computes its weight
            twin, held = copy.deepcopy(layers.plain(original)), new.to_dense()  # pyright: ignore[reportCallIssue]
        _carry(twin, "weight", held)  # pyright: ignore[reportArgumentType]
        if bias and getattr(new, "bias", None) is not None:
            _carry(twin, "bias", new.bias)  # pyright: ignore[reportArgumentType]
    activation = getattr(new, CHILD, None)
    if isinstance(activation, ActivationQuant):
        quantize_input(twin, copy.deepcopy(activation))
    return twin.train(new.training)


def _plain_copy(layer: nn.Module) -> nn.Module:
    """A copy whose parametrized tensors are ordinary ones of the same values.

    Not by `remove_parametrizations`: a copy shares the class that it would take apart.
    """
    twin = copy.deepcopy(layer)
    for part in filter(parametrize.is_parametrized, list(twin.modules())):
        cls = parametrize.type_before_parametrizations(part)
        keys: list[str] = list(part._modules["parametrizations"]._modules)  # pyright: ignore
        values = {key: getattr(part, key).detach().clone() for key in keys}
        del part._modules["parametrizations"]
        part.__class__ = cls
        for key, value in values.items():
            part.register_parameter(key, nn.Parameter(value))
    return twin


def _carry(layer: Any, key: str, value: Tensor) -> None:
    setattr(layer, key, nn.Parameter(value.detach().clone().to(getattr(layer, key).dtype)))


def moved(twin: Any, new: Any) -> nn.Module:
    """A copy of the twin with every entry of its weight moved as far as rounding in `new` may come to."""
    other, generator = copy.deepcopy(twin), torch.Generator().manual_seed(0)
    for key in layers.matrices(twin):
        weight = getattr(twin, key).detach()
        bound = _rounding_bound(new, key)
        held = layers.held_by(twin, bound) if hasattr(new, "to_dense") else bound
        signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
        setattr(other, key, nn.Parameter(weight + signs * (bound if held is None else held).to(weight)))
    return other


def _rounding_bound(layer: Any, key: str) -> Tensor:
    """What rounding in the layer's product may come to, as a change of its weight `key` (of factors: of `to_dense`).

    sqrt(n) u times the weight that the factors without their signs come to; n the length of all sums on the way. In
    half precision sums are kept in float32 and rounded once for each factor: there n is the number of factors.
    """
    if not hasattr(layer, "to_dense"):
        weight = getattr(layer, key).detach()
        return weight.abs() * _unit(weight)
    size: Any = parametrize.type_before_parametrizations(layer).from_structure(layer.structure())
    lengths = []
    with torch.no_grad():
        for name, parameter in size.named_parameters():
            holder, _, key = name.rpartition(".")
            value: Tensor = getattr(layer.get_submodule(holder), key)
            parameter.data = value.detach().abs()
            lengths.append(value.numel() // min(value.shape) if value.dim() > 1 else 1)
        weight = size.to_dense()
    total = len(lengths) + 1 if weight.dtype.itemsize < 4 else sum(lengths) + weight[0].numel()
    return weight * total**0.5 * _unit(weight)


def _unit(weight: Tensor) -> float:
    return torch.finfo(weight.dtype).eps / 2 if weight.device.type == "cpu" else _SHORT_FACTORS
