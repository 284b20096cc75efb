"""The dense layer for which a factorized or rounded one stands, and how far rounding may move its weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd import layers, tt
from compresskd.proof.passes import sharing
from compresskd.quant.activation import CHILD, ActivationQuant, quantize_input

_SHORT_FACTORS = 2.0**-11  # unit of rounding on devices that may shorten the factors of a product


def carrying(original: nn.Module, new: nn.Module, *, others: bool = False) -> nn.Module:
    """A copy of `original` that carries the weight that `new` comes to; where it is factorized itself, a dense layer.

    The weight is computed as it is read: all at once would take as much memory as the dense model.

    Args:
        others: take the bias of `new`, too, and what else it has of its own, which are meant to be others (rounded, or
            fresh).

    Inputs that `new` rounds are rounded by the copy.
    """
    if isinstance(
        original, nn.MultiheadAttention
    ):  # whose weights, biases and inner layer one operation reads
        return _plain_copy(new).train(new.training)
    dtype = next(original.parameters()).dtype
    twin: Any = _dense_of(original, new)
    held = twin.held
    _read(twin, lambda: held(_weight_of(new)).to(dtype))
    for name, own in list(twin._parameters.items()) if others else ():
        value = getattr(new, name, None)
        if own is not None and isinstance(value, Tensor):
            twin.register_parameter(name, nn.Parameter(value.detach().clone().to(own.dtype)))
    activation = getattr(new, CHILD, None)
    if isinstance(activation, ActivationQuant):
        quantize_input(twin, copy.deepcopy(activation))
    return twin.train(new.training)


def _dense_of(original: nn.Module, new: nn.Module) -> nn.Module:
    """The dense layer whose weight is to be set; `held` turns what `new` comes to into the one that it holds."""
    twin: Any
    if hasattr(original, "to_dense"):
        twin = tt.ordinary(new)
    elif hasattr(new, "to_dense") and layers.computes_weight(original):
        twin = layers.plain(original)
    else:
        twin = _plain_copy(original, without="weight")
        if hasattr(new, "to_dense"):
            twin.held = layers.holding(original)
            return twin
    twin.held = _as_it_is
    return twin


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _weight_of(new: Any) -> Tensor:
    return new.to_dense() if hasattr(new, "to_dense") else new.weight


def _read(twin: Any, weight: Callable[[], Tensor]) -> None:
    """Let the twin's weight be what is computed whenever it is read.

    The function is the twin's own and not its class's, which lives as long as no garbage is collected.
    """
    twin._parameters.pop("weight", None)
    twin.computed = weight
    cls = type(twin)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "weight": property(_computed)}
    twin.__class__ = type(cls.__name__, (cls,), names)


@torch.no_grad()
def _computed(twin: Any) -> Tensor:
    return twin.computed().detach()


def _plain_copy(layer: nn.Module, *, without: str = "") -> nn.Module:
    """A copy whose parametrized tensors are ordinary ones of the same values, but for one that it does not have.

    Not by `remove_parametrizations`: a copy shares the class that it would take apart.
    """
    twin = sharing(layer)
    for part in filter(parametrize.is_parametrized, list(twin.modules())):
        cls = parametrize.type_before_parametrizations(part)
        keys: list[str] = list(part._modules["parametrizations"]._modules)  # pyright: ignore
        values = {key: getattr(part, key).detach().clone() for key in keys if key != without}
        del part._modules["parametrizations"]
        part.__class__ = cls
        for key, value in values.items():
            part.register_parameter(key, nn.Parameter(value))
    twin._parameters.pop(without, None)
    return twin


def moved(twin: Any, new: Any) -> nn.Module:
    """A copy of the twin with every entry of its weight moved as far as rounding in `new` may come to."""
    other = sharing(twin)
    if isinstance(other, nn.MultiheadAttention):
        for key in layers.matrices(other):
            value = getattr(other, key).detach()
            setattr(other, key, nn.Parameter(value + _signs(value) * value.abs() * _unit(value)))
        return other
    held = getattr(twin, "held", _as_it_is)

    def shifted() -> Tensor:
        # in place and one after the other: of a large table each copy counts
        change = held(_rounding_bound(new))
        change.mul_(_signs(change))
        weight = twin.weight
        return change.to(weight).add_(weight)

    _read(other, shifted)
    return other


def _signs(like: Tensor) -> Tensor:
    """1 or -1 at random, the same each time."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return bits.to(like).mul_(2).sub_(1)


def _rounding_bound(layer: Any) -> Tensor:
    """What rounding in the layer's product may come to, as a change of the weight that it comes to.

    sqrt(n) u times the weight that the factors without their signs come to; n the length of all sums on the way. In
    half precision sums are kept in float32 and rounded once for each factor: there n is the number of factors.
    """
    if not hasattr(layer, "to_dense"):
        weight = layer.weight.detach()
        return weight.abs().mul_(_unit(weight))
    size: Any = parametrize.type_before_parametrizations(layer).from_structure(layer.structure())
    lengths = []
    with torch.no_grad():
        for name, parameter in size.named_parameters():
            holder, _, key = name.rpartition(".")
            value: Tensor = getattr(layer.get_submodule(holder), key)
            parameter.data = value.detach().abs()
            lengths.append(value.numel() // min(value.shape) if value.dim() > 1 else 1)
        for name, buffer in size.named_buffers():
            buffer.copy_(layer.get_buffer(name))
        weight = size.to_dense()
    total = len(lengths) + 1 if weight.dtype.itemsize < 4 else sum(lengths) + weight[0].numel()
    return weight.mul_(total**0.5 * _unit(weight))


def _unit(weight: Tensor) -> float:
    return torch.finfo(weight.dtype).eps / 2 if weight.device.type == "cpu" else _SHORT_FACTORS
