"""From a recorded structure to the empty module."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from compresskd.tt.layers.conv import TTConv2d
from compresskd.tt.layers.conv1d import CPConv1d, TTConv1d
from compresskd.tt.layers.cp import CPConv2d, CPLinear
from compresskd.tt.layers.embedding import TTEmbedding
from compresskd.tt.layers.grouped import GroupedEmbedding
from compresskd.tt.layers.interpolative import InterpolativeLinear
from compresskd.tt.layers.linear import TTLinear
from compresskd.tt.layers.tucker import TuckerLinear

_CLASSES = (
    TTLinear,
    TTConv2d,
    TTEmbedding,
    TuckerLinear,
    CPLinear,
    CPConv2d,
    TTConv1d,
    CPConv1d,
    InterpolativeLinear,
    GroupedEmbedding,
)


def from_structure(structure: Mapping[str, Any]) -> nn.Module:
    """The module that `structure()` of a factorized layer describes, with all parameters zero.

    Raises:
        ValueError: `structure["class"]` is no factorized layer of this package.
    """
    for candidate in _CLASSES:
        if candidate.__name__ == structure["class"]:
            return candidate.from_structure(structure)
    known = ", ".join(candidate.__name__ for candidate in _CLASSES)
    raise ValueError(f"expected the class of a structure to be one of {known}; got {structure['class']!r}")
