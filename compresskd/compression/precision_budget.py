"""Bits and ranks of every layer chosen together, from one sensitivity table, so that the model fits a file size."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from compresskd import artifact
from compresskd.artifact import compact
from compresskd.compression.allocation import BudgetTooSmallError, Size, allocate
from compresskd.compression.calibration import LayerStatistics, calibrate, is_table
from compresskd.compression.precision_table import Form, can_have_lower_ranks, table_of
from compresskd.compression.quantization import BEST, Quantization
from compresskd.compression.weighting import TWO_SIDED
from compresskd.data.base import Split
from compresskd.data.draw import draw
from compresskd.engine.strategy import Context
from compresskd.layers import surgery
from compresskd.options import OptionError
from compresskd.quant.activation import calibrate as calibrate_activations
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, quantize_tensor
from compresskd.quant.prepare import prepare
from compresskd.quant.targets import find_targets
from compresskd.tasks import Inputs

_ROUNDS = 8  # of bringing what the table says of the size, and what the file takes, together
_CLOSE = 0.995  # share of the budget that ends the search
_ROUNDINGS = 4  # of the whole model, where the coded file counts
_CLOSE_CODED = 0.98
_SPARE = 0.002  # of the budget, left free after a choice that took too much
_FEWEST = 8  # a part of the calibration samples: fewer others say too little
_NEAR = 0.9  # of the budget: a least size above it is not taken from the table

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
    looked_at = functools.partial(
        calibrate,
        model,
        seed=context.stage_seed,
        task=context.data.task if quantization.whitening == TWO_SIDED else None,
        note=context.reporter.note,
    )
    found = looked_at(names, context.data.train, num_samples=quantization.num_calibration)
    apart = _seen_apart(model, owners, looked_at, context, num_samples=quantization.num_calibration)
    curves = table_of(model, owners, found, apart, quantization, coded=final is not None)
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


def _seen_apart(
    model: nn.Module,
    owners: Mapping[str, tuple[str, ...]],
    looked_at: Callable[..., dict[str, LayerStatistics]],
    context: Context,
    *,
    num_samples: int,
) -> dict[str, LayerStatistics]:
    """What samples that calibration does not take show of the layers that may get lower ranks.

    A table is not among them: its tokens are counted in many samples.
    """
    lower = []
    for name, users in owners.items():
        layer = model.get_submodule(name)
        if can_have_lower_ranks(layer, users) and not is_table(layer):
            lower.append(name)
    if not lower:
        return {}
    others = _others(context, num_samples)
    if others is None:
        context.reporter.note(
            "quant.budget: calibration takes all training samples: lower ranks look better than they are"
        )
        return {}
    return looked_at(lower, others, num_samples=len(others))


def _others(context: Context, num_samples: int) -> Split | None:
    """Half as many training samples as calibration takes, none of which it takes; None where there are too few."""
    more = draw(context.data.train, num_samples + -(-num_samples // 2), seed=context.stage_seed)
    rest = torch.arange(min(num_samples, len(more)), len(more))
    if len(rest) < max(1, num_samples // _FEWEST):
        return None
    return more.take(rest, f"{more.fingerprint}/{num_samples}")


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
