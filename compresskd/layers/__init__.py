"""Which layers of a network may be replaced, and how they are: the registry, and the change of a model in place."""

from compresskd.layers.known import scale_of
from compresskd.layers.registry import (
    NAMES,
    PLAIN,
    WEIGHTS,
    Layer,
    computes_weight,
    effective,
    find,
    form_of,
    held_by,
    is_factorized,
    is_matrix,
    matrices,
    obstacle,
    plain,
    register,
    type_of,
    weights_of,
)

__all__ = [
    "NAMES",
    "PLAIN",
    "WEIGHTS",
    "Layer",
    "computes_weight",
    "effective",
    "find",
    "form_of",
    "held_by",
    "is_factorized",
    "is_matrix",
    "matrices",
    "obstacle",
    "plain",
    "register",
    "scale_of",
    "type_of",
    "weights_of",
]
