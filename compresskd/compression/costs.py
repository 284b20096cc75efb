"""What every form of a layer costs in the unit of a budget: parameters, multiply-accumulates or time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers, measure, tt
from compresskd.measure import macs
from compresskd.options import OptionError
from compresskd.tasks import Inputs, call, map_inputs
from compresskd.training.evaluation import evaluation_mode

ALL, INCLUDED = "all", "included"
PARAMETERS, BYTES, MACS, LATENCY = "parameters", "bytes", "macs", "latency"
UNITS = (PARAMETERS, BYTES, MACS, LATENCY)
_NUM_TIMED = 8  # forms of a layer
_SECONDS = 0.1  # for those of one layer

Priced = tuple[int, tt.CurvePoint | None]


class Costs(ABC):
    """In one unit, the whole that a budget is a share of, and what forms of a layer take of it.

    Attributes:
        unit: for messages.
        total: of the model, or of the dense weights of the chosen layers.
    """

    unit: str
    total: int

    @abstractmethod
    def of(self, name: str, layer: nn.Module, points: Sequence[tt.CurvePoint]) -> Iterator[Priced]:
        """What these forms of a layer cost, and last the dense layer, without a point."""


class Parameters(Costs):
    """Numbers that are stored."""

    unit = PARAMETERS

    def __init__(self, model: nn.Module, chosen: Iterable[nn.Module], over: str) -> None:
        self.total = total_of(model, chosen, over)

    def of(self, name: str, layer: nn.Module, points: Sequence[tt.CurvePoint]) -> Iterator[Priced]:
        """See the base class."""
        yield from ((point.num_parameters, point) for point in points)
        yield layers.plain(layer).weight.numel(), None


class _Run(Costs):
    """What a pass over one sample takes. A table, which multiplies nothing, and tied weights stay dense at no cost."""

    def __init__(
        self, model: nn.Module, chosen: Mapping[str, nn.Module], over: str, inputs: Inputs, method: str
    ) -> None:
        self._method, self._inputs = method, map_inputs(lambda x: x[:1], inputs)
        tied = {
            id(module)
            for layer in layers.find(model)
            if len(layer.members) > 1
            for module in layer.members.values()
        }
        run = {
            name: layer
            for name, layer in chosen.items()
            if not isinstance(layers.plain(layer), nn.Embedding) and id(layer) not in tied
        }
        self._given = _given_to(model, run, self._inputs)
        dense = sum(self._dense(name, layer) for name, layer in run.items())
        self.total = self._whole(model) if over == ALL else dense

    def of(self, name: str, layer: nn.Module, points: Sequence[tt.CurvePoint]) -> Iterator[Priced]:
        """See the base class."""
        if self._given.get(name):
            yield from self._forms(name, layer, points)
        yield self._dense(name, layer), None

    @abstractmethod
    def _whole(self, model: nn.Module) -> int: ...

    @abstractmethod
    def _dense(self, name: str, layer: nn.Module) -> int: ...

    @abstractmethod
    def _forms(self, name: str, layer: nn.Module, points: Sequence[tt.CurvePoint]) -> Iterator[Priced]: ...


class Macs(_Run):
    """Multiply-accumulates, as `compresskd.measure.macs` counts them."""

    unit = "multiply-accumulates of a sample"

    def _whole(self, model: nn.Module) -> int:
        found = macs.count(model, self._inputs)
        if found.number is None:
            raise OptionError("budget_of", MACS, f"{PARAMETERS} or {BYTES}: {found.unknown}")
        return found.number

    def _dense(self, name: str, layer: nn.Module) -> int:
        return sum(macs.count(layer, x).number or 0 for x in self._given.get(name, ()))

    def _forms(self, name: str, layer: nn.Module, points: Sequence[tt.CurvePoint]) -> Iterator[Priced]:
        for point in points:
            form: Any = tt.empty_form(layer, point, method=self._method)
            yield sum(form.macs(x.to("meta")) for x in self._given[name]), point


class Latency(_Run):
    """Nanoseconds of a pass, measured on this machine; of each layer a few forms are timed, and no others offered."""

    unit = "nanoseconds of a sample"

    def _whole(self, model: nn.Module) -> int:
        return self._times({"model": model}, self._inputs)["model"]

    def _dense(self, name: str, layer: nn.Module) -> int:
        return sum(self._times({"dense": layer}, x)["dense"] for x in self._given.get(name, ()))

    def _forms(self, name: str, layer: nn.Module, points: Sequence[tt.CurvePoint]) -> Iterator[Priced]:
        places = torch.linspace(0, len(points) - 1, min(_NUM_TIMED, len(points))).round().int().tolist()
        forms = {
            str(place): _filled(tt.empty_form(layer, points[place], method=self._method), layer)
            for place in places
        }
        spent = dict.fromkeys(forms, 0)
        for x in self._given[name]:
            for place, time in self._times(forms, x).items():
                spent[place] += time
        yield from ((spent[str(place)], points[place]) for place in places)

    def _times(self, models: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, int]:
        found = measure.latency(models, inputs, batch_sizes=(1,), seconds=_SECONDS)
        return {name: round(1e6 * times["batch_1"]) for name, times in found.items()}


def costs_of(
    unit: str,
    over: str,
    chosen: Mapping[str, nn.Module],
    model: nn.Module,
    inputs: Inputs | None,
    method: str,
) -> Costs:
    """Those of a budget in `unit`, one of UNITS; bytes are counted as parameters first, and then in the file.

    Args:
        over: ALL or INCLUDED, which say what the total is of.
        chosen: the layers that may be changed, of tied ones the first.
        inputs: [1 or more, ...] of the model, for MACS and LATENCY.
        method: by which layers are factorized.
    """
    dense = {name: layer for name, layer in chosen.items() if not layers.is_factorized(layer)}
    if unit in (PARAMETERS, BYTES):
        return Parameters(model, dense.values(), over)
    assert inputs is not None
    return (Macs if unit == MACS else Latency)(model, dense, over, inputs, method)


def total_of(model: nn.Module, chosen: Iterable[nn.Module], over: str) -> int:
    """The parameters that a budget is a share of: of the model, or of the weights of the chosen layers alone."""
    if over == ALL:
        return measure.num_parameters(model)
    return sum(layers.plain(layer).weight.numel() for layer in chosen if not layers.is_factorized(layer))


def _filled(form: nn.Module, like: nn.Module) -> nn.Module:
    """With random factors, where `like` is."""
    made: Any = form.to_empty(device=next(like.parameters()).device)
    made.reset_parameters()
    return made


def _given_to(model: nn.Module, chosen: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, list[Tensor]]:
    """What each of these layers is given in one pass, at each of its calls."""
    found: dict[str, list[Tensor]] = {name: [] for name in chosen}
    with ExitStack() as stack, evaluation_mode(model), torch.no_grad():
        for name, layer in chosen.items():

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                found[name].append(
                    next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).detach()
                )

            stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        call(model, inputs)
    return found
