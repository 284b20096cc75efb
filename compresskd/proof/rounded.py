"""The proof for layers that are rounded as they are read."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from compresskd.proof.comparison import differing
from compresskd.proof.passes import sharing
from compresskd.proof.twins import carrying
from compresskd.quant.prepare import freeze
from compresskd.tasks import Inputs


def differing_when_rounded(
    original: nn.Module, prepared: nn.Module, names: Collection[str], inputs: Inputs
) -> dict[str, str]:
    """The named layers that do not do, in place, what they would do dense with the rounded values; with the reason.

    Args:
        original: the model before `quant.prepare.prepare`.
        prepared: afterwards, with the ranges of its activations observed.
        names: of the layers whose weights are rounded.
        inputs: [B, ...] a few samples.
    """
    still = sharing(prepared)
    freeze(still)  # to read a weight in training mode may move its scale
    old, new = ({name: model.get_submodule(name) for name in names} for model in (original, still))
    twins = {name: carrying(old[name], new[name], others=True) for name in names}
    return differing(still, old, new, twins, inputs)
