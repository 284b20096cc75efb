"""Put the factorized layers of a plan into a model, and take single ones out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from compresskd import layers, measure, tt
from compresskd.layers import surgery

Make = Callable[..., nn.Module | tt.Skipped]  # of a layer; where planned, with another metric
Descriptions = dict[str, dict[str, Any]]
LEFT_OUT = "left out by compress.include or compress.exclude"


@dataclass(frozen=True)
class Replacement:
    """One weight in its new form: old and new modules by the first name of each (several where it is tied)."""

    old: Mapping[str, nn.Module]
    new: Mapping[str, nn.Module]


@dataclass(frozen=True)
class Replaced:
    """What became of the layers of a model.

    Attributes:
        replacements: by the name of the layer that was decomposed.
        skipped: of every layer left dense the reason.
    """

    replacements: dict[str, Replacement] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> Descriptions:
        """Of each new layer its kind, ranks and parameters; of a tied one whose factors it holds."""
        found: Descriptions = {}
        for name, each in self.replacements.items():
            for member, new in each.new.items():
                found[member] = _describe(new, each.old[member])
                if member != name:
                    found[member]["weights_of"] = name
        return found

    def put_back(self, model: nn.Module, name: str, reason: str) -> None:
        """Undo the replacement of this name in `model`, with all layers that are tied to it; they count as skipped."""
        each = self.replacements.pop(name)
        for member, old in each.old.items():
            surgery.put(model, each.new[member], old)
            self.skipped[member] = reason


def carry_out(model: nn.Module, plan: Mapping[str, Make]) -> Replaced:
    """Replace the layers of `model` that a plan names by what it makes of them, in place.

    Every name and every tied layer of a weight gets the same new factors; where one of them has no such form, all
    stay as they were.
    """
    done = Replaced()
    for layer in layers.find(model):
        found = tt.Skipped(layer.obstacle) if layer.obstacle is not None else _new_forms(layer, plan)
        if isinstance(found, tt.Skipped):
            done.skipped.update(dict.fromkeys(layer.members, found.reason))
            continue
        for name, new in found.items():
            surgery.put(model, layer.members[name], new)
        done.replacements[layer.name] = Replacement(layer.members, found)
    return done


def _new_forms(layer: layers.Layer, plan: Mapping[str, Make]) -> dict[str, nn.Module] | tt.Skipped:
    if layer.name not in plan:
        return tt.Skipped(LEFT_OUT)
    if (reason := refusal(layer.members.values())) is not None:
        return reason
    first = plan[layer.name](layer.module)
    if isinstance(first, tt.Skipped):
        return first
    if len(layer.members) == 1:
        return {layer.name: surgery.adopt(first, layer.module)}
    made: dict[str, nn.Module] = {}
    for name, module in layer.members.items():
        new = tt.twin(first, module)
        if isinstance(new, tt.Skipped):
            return new
        made[name] = new
    return {name: surgery.adopt(new, layer.members[name]) for name, new in made.items()}


def refusal(members: Iterable[nn.Module]) -> tt.Skipped | None:
    """Why one of the layers of a weight has no factorized form."""
    reasons = (tt.refusal(module) for module in members if not layers.is_factorized(module))
    return next((reason for reason in reasons if reason is not None), None)


def _describe(module: nn.Module, old: nn.Module) -> dict[str, Any]:
    described = {
        "kind": type(module).__name__,
        "ranks": list(getattr(module, "ranks", ())),
        "num_parameters": measure.num_parameters(module),
        "num_parameters_dense": getattr(module, "num_parameters_dense", None) or measure.num_parameters(old),
    }
    for dims in ("input_dims", "output_dims"):
        if hasattr(module, dims):
            described[dims] = list(getattr(module, dims))
    return described
