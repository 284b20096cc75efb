"""Bits and ranks of every layer chosen together, from one sensitivity table, so that the model fits a file size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import artifact, layers
from compresskd.compression.allocation import BudgetTooSmallError, Size, allocate
from compresskd.compression.calibration import LayerStatistics, calibrate
from compresskd.compression.quantization import BEST, Quantization
from compresskd.compression.start_quantized import start_quantized
from compresskd.compression.weighting import TWO_SIDED, Weighting, combined, isotropic, weighting_of
from compresskd.engine.strategy import Context
from compresskd.layers import surgery
from compresskd.options import OptionError
from compresskd.quant.activation import calibrate as calibrate_activations
from compresskd.quant.grid import BITS, Grid
from compresskd.quant.pack import QuantizedTensor, quantize_tensor
from compresskd.quant.prepare import prepare
from compresskd.quant.targets import find_targets
from compresskd.tasks import Inputs
from compresskd.tt.decompose.metric import Metric

_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2)  # of the present ranks that are tried
_ROUNDS = 8  # of bringing what the table says of the size, and what the file takes, together
_CLOSE = 0.995  # share of the budget that ends the search


@dataclass(frozen=True)
class Form:
    """Bits of a weight, the layer of lower ranks that takes its place (None leaves it), and all layers that use it."""

    bits: int
    layer: nn.Module | None = None
    users: tuple[str, ...] = ()


Chosen = Mapping[str, Form]
ErrorOf = Callable[[Tensor, Tensor], float]  # of a weight [O, N] and what is to take its place


def fit_budget(model: nn.Module, quantization: Quantization, context: Context) -> Quantization:
    """The quantization of least error whose model file, before coding, takes at most `quantization.budget` bytes.

    Layers of lower ranks are put into `model`. The error of a layer is what rounding it adds to
    E|logits - logits'|^2, to first order, over inputs and sensitivities from calibration samples, or with
    `whitening=two_sided` to the task's loss, to second order. Details get `budget`: the bytes asked for, those of the
    choice, and the least that are possible.

    Raises:
        ValueError: not even the smallest form of every layer fits.
    """
    assert quantization.budget is not None
    spec = quantization.spec()
    owners = {t.owner: t.owners for t in find_targets(model) if spec.bits_of(t.owner)}
    names = [name for each in owners.values() for name in each]
    found = calibrate(
        model,
        names,
        context.data.train,
        num_samples=quantization.num_calibration,
        seed=context.stage_seed,
        task=context.data.task if quantization.whitening == TWO_SIDED else None,
        note=context.reporter.note,
    )
    curves = {}
    for name, users in owners.items():
        layer, bits = model.get_submodule(name), _bits_allowed(name, model, quantization)
        seen = {user: (model.get_submodule(user), found[user]) for user in users}
        curves[name] = list(_sizes(layer, bits, quantization, _error_of(seen, quantization.whitening), users))
    budget = int(
        quantization.budget if quantization.budget > 1 else quantization.budget * _file_bytes(model, context)
    )
    chosen, details = _within(budget, curves, model, quantization, context)
    context.details["budget"] = details
    _put_in(model, chosen)
    return _with_bits(quantization, chosen)


def check_budget(prepared: nn.Module, budget: int | float, example: Inputs, dense_bytes: int) -> None:
    """Raise ValueError where a file of this network takes more than a budget even without any weight.

    Args:
        dense_bytes: those of the student as it is now, of which a budget below 1 is a share; factorized, it takes less.
    """
    calibrate_activations(prepared, [example])
    content = artifact.content_of(prepared)
    packed = artifact.compact_sizes(content, trust=artifact.packages(prepared))["packed_bytes"]
    weights = {target.name for target in find_targets(prepared)}
    stored = [content.tensors[name] for name in weights]
    rest = packed - sum(value.num_bytes() for value in stored if isinstance(value, QuantizedTensor))
    allowed = budget if budget > 1 else budget * dense_bytes
    if allowed < rest:
        taken = "" if budget > 1 else f" (it allows {int(allowed):,})"
        raise OptionError("budget", budget, f"> {rest} bytes{taken}, which the file takes without any weight")


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
    bits: tuple[int, ...],
    quantization: Quantization,
    error_of: ErrorOf,
    users: tuple[str, ...],
) -> Iterator[Size]:
    """Every form of one layer, with the bytes of its weights and the error that it adds.

    Where several layers use its weight, bits alone differ.
    """
    exact = _dense(layer)
    start = "nearest" if quantization.core_start == "nearest" else "gauge"
    asked = replace(quantization, layers=None, core_start=start)
    for lower in (None,) if len(users) > 1 else _lower_ranks(layer):
        for each in bits:
            rounded = nn.ModuleDict({"layer": copy.deepcopy(lower or layer)})
            # not learned, the gauge ranks the forms in the same order at a small part of the time
            start = start_quantized(
                rounded,
                replace(asked, bits=each),
                keep_integers=True,
                covariances={},
                seed=0,
                num_steps=0,
            )
            cost = sum(tensor.num_bytes() for tensor in start.tensors.values())
            yield Size(cost, error_of(exact, _dense(rounded["layer"])), form=Form(each, lower, users))


def _lower_ranks(layer: Any) -> Iterator[nn.Module | None]:
    """None for the layer as it is, and the layer at lower ranks where it can be rounded to them."""
    yield None
    if not hasattr(layer, "round"):
        return
    seen = {tuple(layer.ranks)}
    for share in _SHARES[1:]:
        ranks = tuple(max(1, math.ceil(share * rank)) for rank in layer.ranks)
        if ranks not in seen:
            seen.add(ranks)
            yield layer.round(ranks=list(ranks))


@torch.no_grad()
def _dense(layer: Any) -> Tensor:
    """[O, N]: the weight as one matrix."""
    plain = layer if layers.obstacle(layer) is not None else layers.plain(layer)
    weight = layer.to_dense() if hasattr(layer, "to_dense") else plain.weight
    return weight.detach().clone().flatten(1)


def _error_of(users: Mapping[str, tuple[nn.Module, LayerStatistics]], whitening: str) -> ErrorOf:
    """What rounding one weight adds to the error of the model, by the layers that use it."""
    weightings = [weighting_of(layer, found, whitening) for layer, found in users.values()]
    known = [each for each in weightings if each is not None]

    def of_outputs(exact: Tensor, rounded: Tensor) -> float:
        whole: Weighting = combined(known, exact.shape)
        return whole.weight * Metric(whole.inputs, whole.outputs).cost((rounded - exact).float())

    def relative(exact: Tensor, rounded: Tensor) -> float:
        share = (rounded - exact).float().square().sum() / exact.float().square().sum().clamp(min=1e-30)
        return float(share) * sum(isotropic(found, whitening) * found.power for _, found in users.values())

    return of_outputs if len(known) == len(weightings) else relative


def _within(
    budget: int,
    curves: Mapping[str, list[Size]],
    model: nn.Module,
    quantization: Quantization,
    context: Context,
) -> tuple[Chosen, dict[str, int]]:
    """The best choice whose file fits; what it and the smallest one take."""

    def file_bytes(sizes: Mapping[str, Size]) -> int:
        return _file_bytes(
            _prepared(model, {n: s.form for n, s in sizes.items()}, quantization, context), context
        )

    smallest = {name: min(sizes, key=lambda size: (size.cost, size.error)) for name, sizes in curves.items()}
    least = file_bytes(smallest)
    if least > budget:
        taken = f" (it allows {budget:,}), which every layer at its fewest bits and ranks takes"
        raise OptionError("budget", quantization.budget, f">= {least:,} bytes{taken}")
    best, taken = smallest, least
    allowed = budget - least + sum(size.cost for size in smallest.values())
    for _ in range(_ROUNDS):
        try:
            sizes = allocate(curves, allowed)
        except BudgetTooSmallError:
            break
        came = file_bytes(sizes)
        if came <= budget and _error(sizes) <= _error(best):
            best, taken = sizes, came
        if _CLOSE * budget <= came <= budget:
            break
        allowed += budget - came
    chosen = {name: size.form for name, size in best.items()}
    return chosen, {"bytes": budget, "chosen_bytes": taken, "least_bytes": least}


def _error(sizes: Mapping[str, Size]) -> float:
    return sum(size.error for size in sizes.values())


def _prepared(model: nn.Module, chosen: Chosen, quantization: Quantization, context: Context) -> nn.Module:
    """A copy as it would be stored, of no particular values."""
    model, quantization = (
        copy.deepcopy(model),
        replace(_with_bits(quantization, chosen), initial_scale="absmax"),
    )
    _put_in(model, chosen)
    prepare(model, quantization.spec(), start=_mixed_grids(model, quantization))
    if quantization.activation_bits is not None:
        calibrate_activations(model, [context.example])
    return model


def _mixed_grids(model: nn.Module, quantization: Quantization) -> dict[str, QuantizedTensor]:
    """Cores on alternating kinds of grid, where these are only known later: a file takes most to say that."""
    if quantization.core_grid != BEST:
        return {}
    spec, mixed = quantization.spec(), {}
    for position, target in enumerate(t for t in find_targets(model) if t.is_core and spec.bits_of(t.owner)):
        grid = Grid(spec.bits_of(target.owner), ("symmetric", "half_integer")[position % 2])
        mixed[target.name] = quantize_tensor(target.value, grid, spec.granularity_of(target), method="absmax")
    return mixed


def _put_in(model: nn.Module, chosen: Chosen) -> None:
    for name, form in chosen.items():
        if form.layer is not None:
            old = model.get_submodule(name)
            surgery.put(model, old, surgery.adopt(copy.deepcopy(form.layer), old))


def _with_bits(quantization: Quantization, chosen: Chosen) -> Quantization:
    bits = {user: form.bits for form in chosen.values() for user in form.users}
    return replace(quantization, layers={**bits, **quantization.patterns})


def _file_bytes(model: nn.Module, context: Context) -> int:
    content = replace(artifact.content_of(model), about=artifact.about_of(context.data))
    return artifact.compact_sizes(content, trust=artifact.packages(model))["packed_bytes"]
