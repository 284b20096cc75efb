"""Which layers others read the parameters of, so that they cannot take another form."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from compresskd.proof.passes import PASSES, places, undisturbed
from compresskd.tasks import Inputs, call

_KEPT = ("bias",)  # which every form of a layer has


def read_by_others(model: nn.Module, names: Collection[str], inputs: Inputs) -> dict[str, str]:
    """Of the named layers those whose parameters somebody reads besides the layer itself; with the reason, by name.

    nn.TransformerEncoderLayer reads `linear1.weight` in evaluation, nn.MultiheadAttention `out_proj.weight` always.
    Found by running a copy of the model, [B, ...] `inputs`, with every layer behind a guard; the values of the model do
    not matter.
    """
    with undisturbed():
        found, error = _reads(model, names, inputs)
        if error is None:
            return found
        for name in names:  # somebody does not take what stands behind a guard: one by one
            alone, error = _reads(model, [name], inputs)
            found |= alone
            if error is not None:
                found[name] = f"the model does not run with another module in its place: {error}"
        return found


def _reads(model: nn.Module, names: Collection[str], inputs: Inputs) -> tuple[dict[str, str], str | None]:
    guarded = copy.deepcopy(model)
    guards = {name: _Guard(guarded.get_submodule(name)) for name in names}
    where = {name: places(guarded, name) for name in names}
    for name, found in where.items():
        for holder, key in found:
            holder._modules[key] = guards[name]
    error = None
    try:
        for each in PASSES:
            with each.of(guarded):
                call(guarded, inputs)
    except Exception as raised:  # a model may be the user's own code, which raises what it likes
        error = f"{type(raised).__name__}: {str(raised).partition(chr(10))[0]}"
    reason = "another module reads its {}, which another form of the layer does not have"
    return {n: reason.format(", ".join(sorted(g.read))) for n, g in guards.items() if g.read}, error


class _Guard(nn.Module):
    """Stands for a layer, and notes which of its parameters are asked for from outside of its own forward pass."""

    read: set[str]

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "read", set())
        self.guarded = layer
        self.training = layer.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.guarded(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(super().__getattr__("guarded"), name)
        if isinstance(value, Tensor) and name not in _KEPT:
            self.read.add(name)
        return value
