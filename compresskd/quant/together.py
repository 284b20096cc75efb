"""The small weights of a model rounded in one call: what takes the time there is how many calls are made.

    with rounded_together(model):          # in place of torch.nn.utils.parametrize.cached()
        loss = criterion(model(x), y)

A core of some hundred numbers is rounded in microseconds; its own autograd function, and the modules around it, take a
hundred and more. Here one autograd function does for all of them what `LearnedStep` does for one, by the same
operations: values and gradients are equal bit for bit.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from compresskd.quant.estimators import Against, lsq_factor, lsq_slope
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.scale import to_float16

_MOST = 2**16  # elements of a weight; with more it is the passes over them that count, not the calls
_COMPILED = "_orig_mod"  # the child of a compiled model that is the model itself
_LEAST = 2  # weights: with one there is nothing to do together


@contextmanager
def rounded_together(model: nn.Module) -> Iterator[None]:
    """Every weight is rounded once inside, however often it is read; the small ones at once, in one call.

    What `torch.compile` made of a model rounds them in its own graph, and is left to it.
    """
    with parametrize.cached():
        group = None if _COMPILED in model._modules else _weights(model).group()
        if group is not None:
            for weight, value in zip(group.weights, group.rounded(), strict=True):
                parametrize._cache[weight.key] = value
        yield


@dataclass(frozen=True)
class _Weight:
    """A weight, and the key under which `parametrize.cached` keeps its rounded values."""

    key: tuple[int, str]
    stack: parametrize.ParametrizationList
    quant: FakeQuant

    @property
    def value(self) -> Tensor:
        return cast(Tensor, self.stack.original)

    @property
    def is_small(self) -> bool:
        quant, value = self.quant, self.value
        return (
            quant.learns
            and quant.zero_point is None
            and value.numel() <= _MOST
            and value.dtype == quant.log_scale.dtype == torch.float32
        )


class _Group:
    """Weights that are rounded together.

    Attributes:
        counts, factors: [sum of S] how many weights share each scale, and what its gradient is multiplied by.
    """

    def __init__(self, weights: Sequence[_Weight]) -> None:
        self.weights = weights
        self.grids = [weight.quant.grid for weight in weights]
        self.granularities = [weight.quant.granularity for weight in weights]
        self.sizes = [weight.quant.log_scale.numel() for weight in weights]
        shared = [w.value.numel() // size for w, size in zip(weights, self.sizes, strict=True)]
        factors = [lsq_factor(count, grid) for count, grid in zip(shared, self.grids, strict=True)]
        spread, device = torch.tensor(self.sizes), weights[0].value.device
        self.counts, self.factors = (
            torch.tensor(each, dtype=torch.float32).repeat_interleave(spread).to(device)
            for each in (shared, factors)
        )

    def rounded(self) -> Sequence[Tensor]:
        """The rounded values of the weights, with gradients for them and their scales."""
        values, logs = [w.value for w in self.weights], [w.quant.log_scale for w in self.weights]
        return cast(Sequence[Tensor], _LearnedSteps.apply(self, *values, *logs))


class _Weights:
    """The quantized weights of a model, and the group of those that are small and learn."""

    def __init__(self, model: nn.Module) -> None:
        self.made, self._groups = FakeQuant.made, dict[tuple[object, ...], _Group]()
        found: dict[FakeQuant, list[_Weight]] = {}
        for holder in model.modules():
            stacks = cast(nn.ModuleDict, holder.parametrizations) if _has_stacks(holder) else {}
            for name, stack in stacks.items():
                quants = list(stack.children())
                if len(quants) == 1 and isinstance(quants[0], FakeQuant):
                    own = _Weight(_key(holder, name), cast(parametrize.ParametrizationList, stack), quants[0])
                    found.setdefault(quants[0], []).append(own)
        # a tied weight has a gradient from each of its places, which they add up themselves
        self._found = [places[0] for places in found.values() if len(places) == 1]

    def group(self) -> _Group | None:
        """Those that are small and learn now; None where they are too few."""
        small = [weight for weight in self._found if weight.is_small]
        if len(small) < _LEAST:
            return None
        key = (small[0].value.device, *map(id, small))
        if key not in self._groups:
            self._groups[key] = _Group(small)
        return self._groups[key]


_known: "WeakKeyDictionary[nn.Module, _Weights]" = WeakKeyDictionary()


def _weights(model: nn.Module) -> _Weights:
    known = _known.get(model)
    if known is None or known.made != FakeQuant.made:  # it may have been prepared since
        known = _known[model] = _Weights(model)
    return known


def _key(holder: nn.Module, name: str) -> tuple[int, str]:
    """The key of `parametrize.cached`: of the module that was parametrized first, whose copies share its class."""
    read: Any = inspect.getclosurevars(vars(type(holder))[name].fget).nonlocals["get_cached_parametrization"]
    return id(inspect.getclosurevars(read).nonlocals["module"]), name


def _has_stacks(holder: nn.Module) -> bool:
    return "parametrizations" in holder._modules and parametrize.is_parametrized(holder)


class _LearnedSteps(torch.autograd.Function):
    """`apply(group, *weights, *log_scales)`: what `LearnedStep` is of each."""

    @staticmethod
    def forward(ctx: Any, group: _Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The weights rounded."""
        weights, logs = tensors[: len(group.sizes)], tensors[len(group.sizes) :]
        # each by itself: how exp rounds may depend on where in a tensor a number is
        scale = to_float16(torch.cat([log.exp() for log in logs])).float()
        parts = [each.split(group.sizes) for each in (scale, scale.reciprocal())]
        against = [
            Against(granularity.expand(s, w.shape), granularity.expand(per, w.shape), None, grid)
            for granularity, w, grid, s, per in zip(
                group.granularities, weights, group.grids, *parts, strict=True
            )
        ]
        rounded = tuple(each.round(w) for each, w in zip(against, weights, strict=True))
        ctx.set_materialize_grads(False)
        ctx.group, ctx.against, ctx.scale = group, against, scale
        ctx.save_for_backward(*weights, *rounded)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of the weights and of their log_scales; none of a weight that was not read."""
        group, saved = ctx.group, ctx.saved_tensors
        passed: list[Tensor | None] = []
        sums: list[tuple[Tensor, Tensor]] = []
        each = zip(
            grads, saved[: len(grads)], saved[len(grads) :], ctx.against, group.granularities, strict=True
        )
        for (grad, w, rounded, against, granularity), size in zip(each, group.sizes, strict=True):
            if grad is None:
                passed.append(None)
                sums.append((w.new_zeros(size), w.new_zeros(size)))
                continue
            own, *totals = against.gradients(w, rounded, grad, granularity.total)
            passed.append(own.to(grad.dtype))
            sums.append((totals[0], totals[1]))
        products, squares = (torch.cat(each) for each in zip(*sums, strict=True))
        slope = lsq_slope(products, squares, group.counts, group.factors, ctx.scale)
        slopes = [
            None if grad is None else part for grad, part in zip(grads, slope.split(group.sizes), strict=True)
        ]
        return None, *passed, *slopes
