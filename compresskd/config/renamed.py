"""Keys and values of earlier versions: refused with the new ones named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from compresskd.config.faults import Fault
from compresskd.run.renamed import VALUES, instead_of


def renamed_faults(pairs: Iterable[tuple[str, Any]]) -> Iterator[Fault]:
    """A fault for each (key, value) that an earlier version took under another name."""
    for key, value in pairs:
        new = instead_of(key)
        if new is not None:
            yield Fault(key, f"is called {new} now; write {new}=VALUE", literal=True)
        elif isinstance(value, str) and value in VALUES.get(key, {}):
            renamed = VALUES[key][value]
            yield Fault(key, f"got {value}, which is called {renamed} now; write {key}={renamed}")
