"""In what two configurations differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compresskd.targets.stored_names import current


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """'key: value, now other value' for each leaf in which two plain configurations differ.

    A key that one of them lacks and that is off (null or false) in the other came with a later version.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = []
        for name in sorted({*one, *other}):
            if (name in one and name in other) or one.get(name, other.get(name)) not in (None, False):
                found += differences(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
        return found
    return [] if one == other or _is_moved(one, other) else [f"{key}: {one!r}, now {other!r}"]


def _is_moved(one: Any, other: Any) -> bool:
    """Whether both name one class of the package, which has another place by now."""
    return isinstance(one, str) and isinstance(other, str) and current(one) == current(other)
