"""Names of classes in files and configurations: they stay, wherever in the package a class lives.

A stored name looks like a dotted path, the one under which the class was first written. `current` says where it is
now, `stored` what is written. A module whose classes or functions files name is moved by adding one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# the module as it is written: the module as it is
_MOVED = {
    "compresskd.tt.linear": "compresskd.tt.layers.linear",
    "compresskd.tt.conv": "compresskd.tt.layers.conv",
    "compresskd.tt.embedding": "compresskd.tt.layers.embedding",
    "compresskd.tt.cp": "compresskd.tt.layers.cp",
    "compresskd.tt.tucker": "compresskd.tt.layers.tucker",
    "compresskd.objective": "compresskd.kd.objective",
    "compresskd.stages.rank_schedule": "compresskd.compression.rank_schedule",
}
_STORED = {now: then for then, now in _MOVED.items()}


def current(path: str) -> str:
    """Return the dotted path at which that of a file, or of an old configuration, is found."""
    return _replaced(path, _MOVED)


def stored(path: str) -> str:
    """Return the name under which what is at a dotted path is written."""
    return _replaced(path, _STORED)


def with_stored_targets(node: Any) -> Any:
    """Return a plain configuration with every `_target_` in it as it is written."""
    if isinstance(node, Mapping):
        return {
            key: stored(value) if key == "_target_" and isinstance(value, str) else with_stored_targets(value)
            for key, value in node.items()
        }
    return [with_stored_targets(item) for item in node] if isinstance(node, list) else node


def _replaced(path: str, modules: Mapping[str, str]) -> str:
    module, _, name = path.rpartition(".")
    return f"{modules[module]}.{name}" if module in modules else path
