"""Which layers others read the parameters of, so that they cannot take another form."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from compresskd.proof.passes import PASSES, places, sharing, undisturbed
from compresskd.tasks import Inputs, call
from compresskd.tt import WeightDescription

_KEPT = ("bias",)  # which every form of a layer has


def read_by_others(model: nn.Module, names: Collection[str], inputs: Inputs) -> dict[str, str]:
    """Of the named layers those of whose parameters somebody reads the values besides the layer; the reason, by name.

    nn.TransformerEncoderLayer reads `linear1.weight` in evaluation, nn.MultiheadAttention `out_proj.weight` always.
    Found by running a copy of the model, [B, ...] `inputs`, with every layer behind a guard; the values of the model do
    not matter. Whoever reads `weight.dtype` alone runs with a description of the weight as well.
    """
    with undisturbed():
        guards, error = _run_behind(_Guard, model, names, inputs)
        found = {name: guard.reason for name, guard in guards.items() if guard.read}
        if error is not None:  # somebody does not take what stands behind a guard: one by one
            for name in names:
                alone, error = _run_behind(_Guard, model, [name], inputs)
                found |= {name: guard.reason for name, guard in alone.items() if guard.read}
                if error is not None:
                    found[name] = f"the model does not run with another module in its place: {error}"
        read = [name for name, guard in guards.items() if guard.read]
        needed = _of_values(model, read, inputs)
        return {name: reason for name, reason in found.items() if name not in read or name in needed}


def _of_values(model: nn.Module, names: Sequence[str], inputs: Inputs) -> set[str]:
    """Of layers whose weight is read those of which a description will not do: looked for together, then in halves."""
    if not names or _run_behind(_Describing, model, names, inputs)[1] is None:
        return set()
    if len(names) == 1:
        return set(names)
    middle = len(names) // 2
    return _of_values(model, names[:middle], inputs) | _of_values(model, names[middle:], inputs)


def _run_behind(
    kind: type[_Guard], model: nn.Module, names: Collection[str], inputs: Inputs
) -> tuple[dict[str, _Guard], str | None]:
    """Run a copy of the model with guards of this kind; the guards, and the error with which it ended if it did."""
    guarded = sharing(model)
    guards = {name: kind(guarded.get_submodule(name)) for name in names}
    where = {name: places(guarded, name) for name in names}
    for name, found in where.items():
        for holder, key in found:
            holder._modules[key] = guards[name]
    try:
        for each in PASSES:
            with each.of(guarded):
                call(guarded, inputs)
    except Exception as raised:  # a model may be the user's own code, which raises what it likes
        return guards, f"{type(raised).__name__}: {str(raised).partition(chr(10))[0]}"
    return guards, None


class _Guard(nn.Module):
    """Stands for a layer, and notes which of its parameters are asked for from outside of its own forward pass."""

    read: set[str]

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "read", set())
        self.guarded = layer
        self.training = layer.training

    @property
    def reason(self) -> str:
        """Why what was read keeps the layer from taking another form."""
        return f"another module reads its {', '.join(sorted(self.read))}, which another form of the layer does not have"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.guarded(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(super().__getattr__("guarded"), name)
        return self._shown(name, value) if isinstance(value, Tensor) and name not in _KEPT else value

    def _shown(self, name: str, value: Tensor) -> Any:
        self.read.add(name)
        return value


class _Describing(_Guard):
    """Shows of the weight what a factorized layer shows of it."""

    def _shown(self, name: str, value: Tensor) -> Any:
        if name != "weight":
            raise AttributeError(f"no {name}")
        return WeightDescription(value.shape, value.dtype, value.device, value.requires_grad)
