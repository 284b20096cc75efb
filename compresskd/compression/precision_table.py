"""The table of a byte budget: the bytes and the error of every form that each weight can have, of bits and ranks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers
from compresskd.compression.allocation import Size
from compresskd.compression.calibration import LayerStatistics
from compresskd.compression.quantization import Quantization
from compresskd.compression.start_quantized import feeds_back, start_quantized
from compresskd.compression.weighting import (
    DAMPING,
    Weighting,
    combined,
    damped,
    isotropic,
    weighting_of,
)
from compresskd.quant.entropy import saved_by_coding
from compresskd.quant.feedback import GPTQ, NEAREST
from compresskd.quant.grid import BITS
from compresskd.quant.targets import find_targets
from compresskd.tt.decompose.metric import Metric

_SHARES = (0.85, 0.7, 0.55, 0.4, 0.3, 0.2)  # of the present ranks that are tried


@dataclass(frozen=True)
class Form:
    """A form that a weight can have.

    Attributes:
        bits: of the weight.
        layer: of lower ranks that takes its place; None leaves it.
        users: all layers that use it.
        saved: bytes that entropy coding saves; 0 where these do not count.
    """

    bits: int
    layer: nn.Module | None = None
    users: tuple[str, ...] = ()
    saved: int = 0


def table_of(
    model: nn.Module,
    weights: Mapping[str, tuple[str, ...]],
    found: Mapping[str, LayerStatistics],
    apart: Mapping[str, LayerStatistics],
    quantization: Quantization,
    *,
    coded: bool,
) -> dict[str, list[Size]]:
    """The forms of every weight, by the layer that owns it.

    Args:
        weights: all layers that use a weight, by its owner.
        found: what calibration samples have shown of these layers, by which forms are chosen.
        apart: what other samples have shown of some, over which the errors of their forms are counted.
        coded: whether bytes are counted after entropy coding.
    """
    curves = {}
    for name, users in weights.items():
        layer, bits = model.get_submodule(name), _bits_allowed(name, model, quantization)
        exact = _dense(layer)
        seen, counted = (
            _Seen.of({u: (model.get_submodule(u), each[u]) for u in users}, exact.shape, quantization)
            for each in (found, {**found, **apart})
        )
        curves[name] = list(_sizes(layer, exact, bits, quantization, seen, counted, users, coded=coded))
    return curves


def can_have_lower_ranks(layer: nn.Module, users: tuple[str, ...]) -> bool:
    """Whether the table has forms of lower ranks of a weight; where several layers use it, bits alone differ."""
    return hasattr(layer, "round") and len(users) == 1


def _bits_allowed(name: str, model: nn.Module, quantization: Quantization) -> tuple[int, ...]:
    """Those that a pattern gives the layer, else all that its grid has."""
    fixed = quantization.bits_of_pattern(name)
    if fixed is not None:
        return (fixed,)
    kinds = {
        quantization.core_grid if target.is_core else quantization.grid
        for target in find_targets(model)
        if target.owner == name
    }
    return (2,) if "ternary" in kinds else BITS


def _sizes(
    layer: nn.Module,
    exact: Tensor,
    bits: tuple[int, ...],
    quantization: Quantization,
    seen: _Seen,
    counted: _Seen,
    users: tuple[str, ...],
    *,
    coded: bool,
) -> Iterator[Size]:
    """Every form of one layer, with the bytes of its weights, coded or not, and the error that it adds.

    A form is chosen by what was `seen`, and its error `counted` by other samples where there are any: a form of lower
    rank is the best one by the very covariances that choose it, and by these its error looks the smaller the fewer
    samples they are of (a half with SmolLM2 and 24 samples of 512 tokens; that of rounding is no smaller). What errors
    fed back save is known of the ranks that the layer has; at lower ones, which would take as long again each, the same
    share of the error of rounding to the nearest stands for it.
    """
    inputs = {} if seen.covariance is None else {"layer": seen.covariance}
    start = "nearest" if quantization.core_start == "nearest" else "gauge"
    asked = replace(quantization, layers=None, core_start=start)
    left_by_feedback: dict[int, float] = {}
    lower_ranks = _lower_ranks(layer, seen.metric()) if can_have_lower_ranks(layer, users) else ()
    for lower in (None, *lower_ranks):
        cut = exact if lower is None else _dense(lower)
        of_ranks = 0.0 if lower is None else counted.error(exact, cut)
        for each in bits:
            rounded = nn.ModuleDict({"layer": copy.deepcopy(lower or layer)})
            # not learned, the gauge ranks the forms in the same order at a small part of the time
            start = start_quantized(
                rounded,
                replace(asked, bits=each),
                keep_integers=True,
                covariances=inputs if lower is None else {},
                seed=0,
                num_steps=0,
            )
            tensors = list(start.tensors.values())
            saved = saved_by_coding(tensors) if coded else 0
            cost = sum(tensor.num_bytes() for tensor in tensors) - saved
            error = counted.error(cut, _dense(rounded["layer"]))
            if lower is None:
                left_by_feedback[each] = _share_left(start.errors["layer"])
            else:
                error = of_ranks + left_by_feedback[each] * error
            yield Size(cost, error, form=Form(each, lower, users, saved))


def _share_left(errors: Mapping[str, float]) -> float:
    """Of the squared error of rounding to the nearest, what is left with errors fed back; 1 where they are not."""
    nearest = errors.get(f"output_{NEAREST}", 0.0)
    return (errors[f"output_{GPTQ}"] / nearest) ** 2 if nearest > 0 else 1.0


def _lower_ranks(layer: Any, metric: Metric | None) -> Iterator[nn.Module]:
    """A factorized layer at lower ranks."""
    seen = {tuple(layer.ranks)}
    for share in _SHARES:
        ranks = tuple(max(1, math.ceil(share * rank)) for rank in layer.ranks)
        if ranks not in seen:
            seen.add(ranks)
            yield layer.round(ranks=list(ranks), metric=metric)


@torch.no_grad()
def _dense(layer: Any) -> Tensor:
    """[O, N]: the weight as one matrix."""
    plain = layer if layers.obstacle(layer) is not None else layers.plain(layer)
    weight = layer.to_dense() if hasattr(layer, "to_dense") else plain.weight
    return weight.detach().clone().flatten(1)


@dataclass(frozen=True)
class _Seen:
    """What calibration says of one weight, by all layers that use it.

    Attributes:
        whitening: by what errors count.
        weighting: how they do; None where it is not known of each user, and relative ones count.
        sensitivity: what a relative error of 1 adds to that of the model.
        covariance: E[x x^T] of the inputs over which errors are fed back in rounding; None where they are not.
    """

    whitening: str
    weighting: Weighting | None
    sensitivity: float
    covariance: Tensor | None

    @classmethod
    def of(
        cls,
        users: Mapping[str, tuple[nn.Module, LayerStatistics]],
        shape: torch.Size,
        quantization: Quantization,
    ) -> _Seen:
        """Of a weight [O, N] and the layers that use it."""
        whitening = quantization.whitening
        weightings = [weighting_of(layer, found, whitening) for layer, found in users.values()]
        known = [each for each in weightings if each is not None]
        inputs = (found.covariance for layer, found in users.values() if feeds_back(layer))
        return cls(
            whitening,
            combined(known, shape) if len(known) == len(weightings) else None,
            sum(isotropic(found, whitening) * found.power for _, found in users.values()),
            next((each for each in inputs if each is not None), None)
            if quantization.rounding == GPTQ
            else None,
        )

    def error(self, exact: Tensor, other: Tensor) -> float:
        """What `other` in place of a weight [O, N] adds to the error of the model."""
        if self.weighting is None:
            share = (other - exact).float().square().sum() / exact.float().square().sum().clamp(min=1e-30)
            return float(share) * self.sensitivity
        return self.weighting.weight * Metric(self.weighting.inputs, self.weighting.outputs).cost(
            (other - exact).float()
        )

    def metric(self) -> Metric | None:
        """In which a form of lower ranks is the best one; None where the error of the weight counts by itself."""
        return None if self.weighting is None else damped(self.weighting, DAMPING[self.whitening]).metric
