"""From a target for a model's size to what is done with each of its layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from compresskd import artifact, layers, tt
from compresskd.compression import allocation
from compresskd.compression.costs import BYTES, INCLUDED, PARAMETERS, Costs, costs_of, total_of
from compresskd.compression.replacement import Make, carry_out
from compresskd.compression.size import Size
from compresskd.compression.weighting import Weighting
from compresskd.layers import surgery
from compresskd.options import OptionError
from compresskd.proof import sharing
from compresskd.tasks import Inputs
from compresskd.training import Scores

_MAX_POINTS = 512  # sizes of one layer that are told apart
_NUM_FILLED = 4  # layers that are tried for what a budget leaves over
_BYTES = 4  # of one parameter in a file
_kept: ContextVar[dict[str, Any] | None] = ContextVar("kept", default=None)
_Made = TypeVar("_Made")
_SEARCH_STEPS = 9  # of the bisection for max_drop: the budget is found within 1/500 of the model


@dataclass(frozen=True)
class Method:
    """How a layer is decomposed.

    Attributes:
        name: tensor_train, svd, interpolative, tucker or cp.
        num_cores: restricts the search over modes of a tensor train; None searches all.
        weightings: how errors of each layer count; empty where the error of the weight counts by itself.
        modes: layer-name pattern to modes in place of the search; the first that fits counts.
        keep_larger: factorize layers that do not get smaller, too.
        row_groups: of tables by name, into how many groups their rows are divided.
    """

    name: str
    num_cores: int | None
    weightings: Mapping[str, Weighting]
    modes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    keep_larger: bool = False
    row_groups: Mapping[str, int] = field(default_factory=dict)

    def options(self, name: str) -> dict[str, Any]:
        """Keyword arguments for `tt.factorize`, except the size target."""
        options: dict[str, Any] = {"method": self.name}
        if self.name not in ("tucker", "cp"):
            known = self.weightings.get(name)
            options["input_covariance"] = None if known is None else known.inputs
            options["output_covariance"] = None if known is None else known.outputs
        if self.name == "tensor_train":
            options["num_cores"] = self.num_cores
        if name in self.row_groups:
            options["row_groups"] = self.row_groups[name]
        given = (modes for pattern, modes in self.modes.items() if surgery.matches(name, [pattern], []))
        if (modes := next(given, None)) is not None:
            options["modes"] = modes
        return options


def plan_layers(
    chosen: Mapping[str, nn.Module],
    size: Size,
    method: Method,
    model: nn.Module,
    score: Callable[[dict[str, Make]], Scores] | None,
    inputs: Inputs | None = None,
) -> dict[str, Make]:
    """For each layer by name, the function that makes its new form.

    Args:
        chosen: the layers that may be changed, of tied ones the first.
        model: that they belong to, unchanged.
        score: of a copy of the model that a plan was applied to, on validation; None where `size` has no max_drop.
        inputs: of the model, where a budget is of what it computes.
    """
    if not size.is_shared:
        return {name: functools.partial(_one, name=name, size=size, method=method) for name in chosen}
    costs = costs_of(size.budget_of, size.budget_over, chosen, model, inputs, method.name)
    return from_table(SensitivityTable(chosen, method, model, costs), size, score)


def from_table(
    table: SensitivityTable, size: Size, score: Callable[[dict[str, Make]], Scores] | None
) -> dict[str, Make]:
    """The plan of a budget, or of the smallest model that keeps `max_drop`; `score` as in `plan_layers`."""
    if size.budget is not None:
        return table.within(size.budget, size.budget_of, size.budget_over)
    assert score is not None and size.max_drop is not None  # noqa: PT018 - the other ways have returned
    return _smallest(table, size.max_drop, score)


def of_one_ratio(
    chosen: Mapping[str, nn.Module], size: Size, method: Method, model: nn.Module
) -> dict[str, Make]:
    """The plan in which every layer has the same share of its parameters, so that the model keeps its budget."""
    dense = {n: layers.plain(m).weight.numel() for n, m in chosen.items() if not layers.is_factorized(m)}
    total, whole = total_of(model, chosen.values(), size.budget_over), sum(dense.values())
    ratio = 1 - (1 - (size.budget or 1.0)) * total / whole
    counts = {name: max(1, int(ratio * count)) for name, count in dense.items()}
    return {
        name: functools.partial(tt.factorize, num_parameters=count, **method.options(name))
        for name, count in counts.items()
    }


@contextmanager
def tables_kept() -> Iterator[None]:
    """Inside, a table is computed once for all budgets that are asked of the same model."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def kept(key: Callable[[], str], make: Callable[[], _Made]) -> _Made:
    """What `make` makes, or made before of the same key inside `tables_kept`; one is kept at a time, as it is large."""
    tables = _kept.get()
    if tables is None:
        return make()
    name = key()
    if name not in tables:
        tables.clear()
        tables[name] = make()
    return tables[name]


def _one(layer: nn.Module, *, name: str, size: Size, method: Method, **metric: Any) -> nn.Module | tt.Skipped:
    if layers.is_factorized(layer):
        known = method.weightings.get(name)
        return size.rounded(name, layer, None if known is None else known.metric)
    options = {**size.of_layer(name), **method.options(name), "keep_larger": method.keep_larger, **metric}
    return tt.factorize(layer, **options)


class SensitivityTable:
    """Sizes and errors of every layer, computed once, from which plans for any budget are read."""

    def __init__(
        self, chosen: Mapping[str, nn.Module], method: Method, model: nn.Module, costs: Costs
    ) -> None:
        self._method, self._model, self._costs = method, model, costs
        self._layers = {n: m for n, m in chosen.items() if not layers.is_factorized(m)}
        self.total = costs.total
        self._curves: dict[str, list[allocation.Size]] = {}
        for name, layer in self._layers.items():
            points = tt.error_curve(layer, max_points=_MAX_POINTS, **method.options(name))
            self._curves[name] = [
                allocation.Size(
                    cost, 0.0 if point is None else self._loss(name, point), dense=point is None, form=point
                )
                for cost, point in costs.of(name, layer, points)
            ]
        self._fixed = self.total - sum(curve[-1].cost for curve in self._curves.values())
        least = sum(min(size.cost for size in curve) for curve in self._curves.values())
        self.least = (self._fixed + least) / self.total

    def _loss(self, name: str, point: tt.CurvePoint) -> float:
        weighting = self._method.weightings.get(name)
        return point.error**2 if weighting is None else weighting.weight * point.squared_error

    def within(self, budget: float, of: str, over: str) -> dict[str, Make]:
        """The plan of least error whose model takes at most `budget` of the dense one."""
        if of != BYTES:
            return self.of_share(budget)
        whole = artifact.bytes_of(self._model)
        allowed = whole - (1 - budget) * (_BYTES * self.total if over == INCLUDED else whole)
        plan, share = self.of_share(budget), budget
        kept: tuple[int, dict[str, Make]] | None = None
        for _ in range(4):  # what a file has beside its parameters is only known once it is written
            taken = artifact.bytes_of(applied(self._model, plan))
            if taken <= allowed and (kept is None or taken > kept[0]):
                kept = (taken, plan)
            if 0.985 * allowed <= taken <= allowed:
                break
            share += (0.995 * allowed - taken) / (_BYTES * self.total)
            plan = self.of_share(share)
        return plan if kept is None else kept[1]

    def of_share(self, share: float, *, fill: bool = True) -> dict[str, Make]:
        """The plan of least error whose model takes at most `share` of what the dense one costs.

        With `fill`, one layer takes what whole steps leave over.
        """
        allowed = int(share * self.total) - self._fixed
        try:
            chosen = allocation.allocate(self._curves, allowed)
        except allocation.BudgetTooSmallError:
            taken = "which every layer at its least rank takes"
            expected = f">= {self.least:.4g} of {self.total:,} {self._costs.unit}, {taken}"
            raise OptionError("budget", share, expected) from None
        plan = {name: self._make(name, size) for name, size in chosen.items()}
        left = allowed - sum(size.cost for size in chosen.values())
        return plan | self._filled(chosen, left) if fill and self._costs.unit == PARAMETERS else plan

    def _filled(self, chosen: Mapping[str, allocation.Size], left: int) -> dict[str, Make]:
        """One layer made a little larger than a whole step, where what is left over allows it."""
        dense = {name: curve[-1].cost for name, curve in self._curves.items()}
        room = {n: dense[n] - s.cost for n, s in chosen.items() if not s.dense}
        fitting = sorted(
            (n for n, free in room.items() if free > left > 0), key=lambda n: -chosen[n].error / room[n]
        )
        best: tuple[int, str, int] | None = None
        for name in fitting[:_NUM_FILLED]:
            count = chosen[name].cost + left
            found = self._candidate(name, count)
            if found is not None and found > chosen[name].cost and (best is None or found > best[0]):
                best = (found, name, count)
        if best is None:
            return {}
        _, name, count = best
        return {name: functools.partial(tt.factorize, num_parameters=count, **self._method.options(name))}

    def _candidate(self, name: str, num_parameters: int) -> int | None:
        """Parameters that the layer would take of `num_parameters`, where it would lose less than at its step."""
        options = {k: v for k, v in self._method.options(name).items() if k != "method"}
        if self._method.name != "tensor_train" or "row_groups" in options:
            return None
        found = tt.candidates(self._layers[name], num_parameters=num_parameters, **options)
        return found[0].num_parameters if found and found[0].decomposition is not None else None

    def _make(self, name: str, size: allocation.Size) -> Make:
        if size.dense:
            return _dense if len(self._curves[name]) > 1 else functools.partial(_uncut, unit=self._costs.unit)
        point: tt.CurvePoint = size.form
        options = self._method.options(name)
        options.pop("num_cores", None)  # the modes are chosen
        return functools.partial(tt.factorize, ranks=point.ranks, modes=point.modes, **options)


def _dense(layer: nn.Module, **_: Any) -> tt.Skipped:
    return tt.Skipped("left dense: the budget buys more in other layers")


def _uncut(layer: nn.Module, *, unit: str, **_: Any) -> tt.Skipped:
    return tt.Skipped(f"left dense: no form of it takes fewer {unit}")


def _smallest(
    table: SensitivityTable, max_drop: float, score: Callable[[dict[str, Make]], Scores]
) -> dict[str, Make]:
    """Bisect for the smallest budget that loses at most `max_drop` of the metric by which the task selects."""
    before = score({})
    low, high = table.least, 1.0
    best: dict[str, Make] | None = None
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        plan = table.of_share(middle, fill=False)
        if before.task.monitor.drop(before.monitored, score(plan).monitored) <= max_drop:
            best, high = plan, middle
        else:
            low = middle
    if best is None:
        raise OptionError(
            "max_drop", max_drop, "more: no smaller model loses so little, or a model of another size"
        )
    return best


def applied(model: nn.Module, plan: Mapping[str, Make]) -> nn.Module:
    """A copy of the model with a plan carried out; what stays as it was has the very parameters of the model."""
    changed = sharing(model)
    carry_out(changed, plan)
    return changed
