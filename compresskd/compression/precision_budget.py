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
from compresskd.artifact import compact
from compresskd.compression.allocation import BudgetTooSmallError, Size, allocate
from compresskd.compression.calibration import LayerStatistics, calibrate
from compresskd.compression.quantization import BEST, Quantization
from compresskd.compression.start_quantized import feeds_back, start_quantized
from compresskd.compression.weighting import (
    DAMPING,
    TWO_SIDED,
    Weighting,
    combined,
    damped,
    isotropic,
    weighting_of,
)
from compresskd.engine.strategy import Context
from compresskd.layers import surgery
from compresskd.options import OptionError
from compresskd.quant.activation import calibrate as calibrate_activations
from compresskd.quant.entropy import saved_by_coding
from compresskd.quant.feedback import GPTQ, NEAREST
from compresskd.quant.grid import BITS, Grid
from compresskd.quant.pack import QuantizedTensor, quantize_tensor
from compresskd.quant.prepare import prepare
from compresskd.quant.targets import find_targets
from compresskd.tasks import Inputs
from compresskd.tt.decompose.metric import Metric

_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2)  # of the present ranks that are tried
_ROUNDS = 8  # of bringing what the table says of the size, and what the file takes, together
_CLOSE = 0.995  # share of the budget that ends the search
_ROUNDINGS = 4  # of the whole model, where the coded file counts
_CLOSE_CODED = 0.98
_SPARE = 0.002  # of the budget, left free after a choice that took too much
_NEAR = 0.9  # of the budget: a least size above it is not taken from the table


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


Chosen = Mapping[str, Form]
# Of a model that it may change, with what calibration samples have shown of its layers: what is stored in the end.
Final = Callable[[nn.Module, Quantization, Mapping[str, LayerStatistics]], nn.Module]


def fit_budget(
    model: nn.Module, quantization: Quantization, context: Context, *, final: Final | None
) -> tuple[Quantization, nn.Module | None]:
    """The quantization of least error whose model file takes at most `quantization.budget` bytes.

    Layers of lower ranks are put into `model`. The error of a layer is what rounding it adds to
    E|logits - logits'|^2, to first order, over inputs and sensitivities from calibration samples, or with
    `whitening=two_sided` to the task's loss, to second order. Details get `budget`: the bytes asked for, those of the
    choice, and the least that are possible.

    Args:
        final: rounds a model for good, where nothing trains it afterwards: then the file as it is written counts. None:
            the integers will change, and the file before coding counts, which no training makes larger.

    Returns:
        The quantization, and what `final` made of the model with it, if that was what it made last.

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
        by_user = {user: (model.get_submodule(user), found[user]) for user in users}
        seen = _Seen.of(by_user, _dense(layer).shape, quantization)
        curves[name] = list(_sizes(layer, bits, quantization, seen, users, coded=final is not None))
    budget = quantization.budget
    if budget <= 1:
        budget *= _file_bytes(model, context, coded=False)
    made = None if final is None else lambda model, chosen: final(model, chosen, found)
    search = _Search(int(budget), curves, model, quantization, context, made)
    chosen = search.best()
    context.details["budget"] = {
        "bytes": search.budget,
        "chosen_bytes": search.taken,
        "least_bytes": search.least,
    }
    _put_in(model, chosen)
    return _with_bits(quantization, chosen), search.made if search.made_of == chosen else None


def check_budget(prepared: nn.Module, budget: int | float, example: Inputs, dense_bytes: int) -> None:
    """Raise ValueError where a file of this network takes more than a budget even without any weight.

    Args:
        dense_bytes: those of the student as it is now, of which a budget below 1 is a share; factorized, it takes less.
    """
    calibrate_activations(prepared, [example])
    content = artifact.content_of(prepared)
    packed = compact.split_of(content, coded=False, trust=artifact.packages(prepared)).total
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
    seen: _Seen,
    users: tuple[str, ...],
    *,
    coded: bool,
) -> Iterator[Size]:
    """Every form of one layer, with the bytes of its weights, coded or not, and the error that it adds.

    Where several layers use its weight, bits alone differ. What errors fed back save is known of the ranks that the
    layer has; at lower ones, which would take as long again each, the same share of the error of rounding to the
    nearest stands for it.
    """
    exact = _dense(layer)
    inputs = {} if seen.covariance is None else {"layer": seen.covariance}
    start = "nearest" if quantization.core_start == "nearest" else "gauge"
    asked = replace(quantization, layers=None, core_start=start)
    left_by_feedback: dict[int, float] = {}
    for lower in (None,) if len(users) > 1 else _lower_ranks(layer, seen.metric()):
        cut = exact if lower is None else _dense(lower)
        of_ranks = 0.0 if lower is None else seen.error(exact, cut)
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
            error = seen.error(cut, _dense(rounded["layer"]))
            if lower is None:
                left_by_feedback[each] = _share_left(start.errors["layer"])
            else:
                error = of_ranks + left_by_feedback[each] * error
            yield Size(cost, error, form=Form(each, lower, users, saved))


def _share_left(errors: Mapping[str, float]) -> float:
    """Of the squared error of rounding to the nearest, what is left with errors fed back; 1 where they are not."""
    nearest = errors.get(f"output_{NEAREST}", 0.0)
    return (errors[f"output_{GPTQ}"] / nearest) ** 2 if nearest > 0 else 1.0


def _lower_ranks(layer: Any, metric: Metric | None) -> Iterator[nn.Module | None]:
    """None for the layer as it is, and the layer at lower ranks where it can be rounded to them."""
    yield None
    if not hasattr(layer, "round"):
        return
    seen = {tuple(layer.ranks)}
    for share in _SHARES[1:]:
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


@dataclass
class _Search:
    """The search for the choice of least error whose file fits; what it and the smallest one take.

    Attributes:
        made, made_of: what `final` made last, and of which choice.
    """

    budget: int
    curves: Mapping[str, list[Size]]
    model: nn.Module
    quantization: Quantization
    context: Context
    final: Callable[[nn.Module, Quantization], nn.Module] | None
    taken: int = 0
    least: int = 0
    made: nn.Module | None = None
    made_of: Chosen | None = None

    def best(self) -> Chosen:
        """The choice; OptionError where not even the smallest fits."""
        smallest = {
            n: min(sizes, key=lambda size: (size.cost, size.error)) for n, sizes in self.curves.items()
        }
        self.least = self._by_table(smallest)
        if self.final is not None and self.least > _NEAR * self.budget:
            self.least = self._as_written(smallest)
        if self.least > self.budget:
            taken = f" (it allows {self.budget:,}), which every layer at its fewest bits and ranks takes"
            raise OptionError("budget", self.quantization.budget, f">= {self.least:,} bytes{taken}")
        best, self.taken = smallest, self.least
        aim = float(self.budget)
        for _ in range(1 if self.final is None else _ROUNDINGS):
            sizes, came = self._toward(aim, smallest)
            if self.final is not None:
                came = self._as_written(sizes)
            if came <= self.budget and _error(sizes) <= _error(best):
                best, self.taken = sizes, came
            if _CLOSE_CODED * self.budget <= came <= self.budget:
                break
            aim += self.budget - came - (_SPARE * self.budget if came > self.budget else 0)
        return _forms(best)

    def _toward(self, budget: float, smallest: Mapping[str, Size]) -> tuple[Mapping[str, Size], int]:
        """The choice of least error that the table says to fit a budget, and what it takes by the table."""
        best, taken = smallest, self._by_table(smallest)
        allowed = int(budget) - taken + sum(size.cost for size in smallest.values())
        for _ in range(_ROUNDS):
            try:
                sizes = allocate(self.curves, allowed)
            except BudgetTooSmallError:
                break
            came = self._by_table(sizes)
            if came <= budget and _error(sizes) <= _error(best):
                best, taken = sizes, came
            if _CLOSE * budget <= came <= budget:
                break
            allowed += int(budget) - came
        return best, taken

    def _by_table(self, sizes: Mapping[str, Size]) -> int:
        """Bytes of the file, of weights that have no particular values."""
        prepared = _prepared(self.model, _forms(sizes), self.quantization, self.context)
        saved = sum(size.form.saved for size in sizes.values())
        return _file_bytes(prepared, self.context, coded=False) - saved

    def _as_written(self, sizes: Mapping[str, Size]) -> int:
        """Bytes of the file of what `final` makes."""
        assert self.final is not None
        chosen = _forms(sizes)
        if self.made is None or self.made_of != chosen:
            self.made, model = None, copy.deepcopy(self.model)
            _put_in(model, chosen)
            self.made, self.made_of = self.final(model, _with_bits(self.quantization, chosen)), chosen
        return _file_bytes(self.made, self.context, coded=True)


def _forms(sizes: Mapping[str, Size]) -> Chosen:
    return {name: size.form for name, size in sizes.items()}


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


def _file_bytes(model: nn.Module, context: Context, *, coded: bool) -> int:
    content = replace(artifact.content_of(model), about=artifact.about_of(context.data))
    return compact.split_of(content, coded=coded, trust=artifact.packages(model)).total
