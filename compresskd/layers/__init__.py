"""Which layers of a network may be replaced, and how they are: the registry, and the change of a model in place."""

from compresskd.layers.registry import (
    PLAIN,
    WEIGHTS,
    Layer,
    effective,
    find,
    is_factorized,
    is_matrix,
    obstacle,
    plain,
    register,
    type_of,
    weights_of,
)

__all__ = [
    "PLAIN",
    "WEIGHTS",
    "Layer",
    "effective",
    "find",
    "is_factorized",
    "is_matrix",
    "obstacle",
    "plain",
    "register",
    "type_of",
    "weights_of",
]
