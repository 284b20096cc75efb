"""Carry a plan out on a model, and keep of it what a trial shows to do the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from torch import nn

from compresskd import layers, tt
from compresskd.compression.replacement import Make, Replaced, carry_out
from compresskd.options import OptionError
from compresskd.proof import carrying, differing, read_by_others, sharing
from compresskd.tasks import Inputs

_MAX_REASONS = 4  # in one message: a deep network has a hundred layers of two shapes


class NothingCompressed(OptionError, RuntimeError):
    """No layer became smaller: the run would report a compression that did not happen."""


def factorize_model(
    model: nn.Module, plan: Mapping[str, Make], inputs: Inputs, *, fresh: bool = False
) -> Replaced:
    """Carry out a plan on the layers of `model`, in place.

    A new layer stays only where a trial on `inputs` [B, ...] shows that it does in the model what the old one would do
    with the same weight (and with `fresh` the same bias).

    Raises:
        NothingCompressed: every layer stayed dense.
    """
    replaced = carry_out(model, plan)
    pairs = list(replaced.replacements.values())
    old = {name: layer for pair in pairs for name, layer in pair.old.items()}
    new = {name: layer for pair in pairs for name, layer in pair.new.items()}
    twins = {name: carrying(old[name], new[name], others=fresh) for name in new}
    computed = {name: layer for name, layer in old.items() if layers.computes_weight(layer)}
    plain = {name: layers.plain(layer) for name, layer in computed.items()}
    reasons = differing(model, computed, plain, sharing(computed), inputs)  # their plain form is tried, too
    reasons |= differing(model, old, new, twins, inputs)
    for name, each in list(replaced.replacements.items()):
        wrong = next((reasons[member] for member in each.new if member in reasons), None)
        if wrong is not None:
            replaced.put_back(model, name, wrong)
    if not replaced.replacements:
        raise NothingCompressed(
            "include", list(plan), f"layers that get smaller: {reasons_of(replaced.skipped)}"
        )
    return replaced


def left(layer: nn.Module, *, reason: str) -> tt.Skipped:
    """A plan that leaves the layer as it is."""
    return tt.Skipped(reason)


def without_read(
    model: nn.Module, taken: Sequence[layers.Layer], inputs: Inputs
) -> tuple[list[layers.Layer], dict[str, Make]]:
    """The layers whose weight no other module reads, and for each of the others what leaves it as it is."""
    reasons = read_by_others(model, [name for layer in taken for name in layer.members], inputs)
    read = {
        layer.name: next(reasons[name] for name in layer.members if name in reasons)
        for layer in taken
        if reasons.keys() & layer.members.keys()
    }
    kept: dict[str, Make] = {name: functools.partial(left, reason=reason) for name, reason in read.items()}
    return [layer for layer in taken if layer.name not in read], kept


def reasons_of(skipped: Mapping[str, str]) -> str:
    """Why no layer was factorized, in a line."""
    reasons = [f"{name}: {reason}" for name, reason in skipped.items()] or ["it has no such layer"]
    more = len(reasons) - _MAX_REASONS
    told = "; ".join(reasons[:_MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")
    return f"no layer gets smaller ({told})"
