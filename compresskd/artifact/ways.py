"""The usual way to store the tensors of each role, and what is stored otherwise.

The roles are core, other weight, other floats, running statistics, integers; exceptions are listed as position,
way, position, way ... in the state of the network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compresskd.artifact.description import FLOAT32, INT64
from compresskd.artifact.errors import ArtifactError

_UNTOLD = (FLOAT32, FLOAT32, FLOAT32, FLOAT32, INT64)  # the way of each role where the header has none


def usual_ways(state: Mapping[str, Tensor], ways: list[Any]) -> tuple[list[Any], list[Any]]:
    """The most frequent way of every role, and the exceptions."""
    roles, usual = _roles(state), list(_UNTOLD)
    for role in range(len(usual)):
        keys = Counter(json.dumps(way) for way, own in zip(ways, roles, strict=True) if own == role)
        usual[role] = json.loads(keys.most_common(1)[0][0]) if keys else _UNTOLD[role]
    while usual and usual[-1] == _UNTOLD[len(usual) - 1]:
        usual.pop()
    exceptions: list[Any] = []
    for position, (way, role) in enumerate(zip(ways, roles, strict=True)):
        if way != _at(usual, role):
            exceptions += [position, way]
    return usual, exceptions


def ways_of(state: Mapping[str, Tensor], usual: list[Any], exceptions: list[Any]) -> list[Any]:
    """The way of every tensor in order, from what `usual_ways` returned."""
    ways = [_at(usual, role) for role in _roles(state)]
    for position, way in zip(exceptions[::2], exceptions[1::2], strict=True):
        if type(position) is not int or not 0 <= position < len(ways):
            raise ArtifactError(f"header: {position!r:.80} is no position among {len(ways)} tensors")
        ways[position] = way
    return ways


def _roles(state: Mapping[str, Tensor]) -> list[int]:
    """The role of every tensor: its position in `_UNTOLD`."""
    return [_role(name, value) for name, value in state.items()]


def _role(name: str, value: Tensor) -> int:
    if not value.is_floating_point():
        return 4
    if name.endswith((".running_mean", ".running_var")):
        return 3
    if ".cores." in name:
        return 0
    return 1 if value.ndim > 1 else 2


def _at(usual: list[Any], role: int) -> Any:
    return usual[role] if role < len(usual) else _UNTOLD[role]
