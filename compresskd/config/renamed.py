"""Keys and values of earlier versions: refused with the new ones named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from compresskd.config.faults import Fault

# A pattern of the whole key -> the key that took its place, with what the pattern's groups matched.
KEYS: dict[str, str] = {}
# A key -> its earlier values and what took their places.
VALUES: dict[str, dict[Any, Any]] = {}


def renamed_faults(pairs: Iterable[tuple[str, Any]]) -> Iterator[Fault]:
    """A fault for each (key, value) that an earlier version took under another name."""
    for key, value in pairs:
        new = next((m.expand(new) for old, new in KEYS.items() if (m := re.fullmatch(old, key))), None)
        if new is not None:
            yield Fault(key, f"is called {new} now; write {new}=VALUE", literal=True)
        elif isinstance(value, str | bool | int) and value in VALUES.get(key, {}):
            renamed = VALUES[key][value]
            yield Fault(key, f"got {value}, which is called {renamed} now; write {key}={renamed}")
