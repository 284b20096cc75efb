"""What is said while a long computation goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_SECONDS = 20.0  # between two lines; what takes less says nothing
_Item = TypeVar("_Item")


def told(items: Iterable[_Item], total: int, text: str, note: Callable[[str], None]) -> Iterator[_Item]:
    """The items, one after the other; now and then `note` is told how many of `total` are done, such as layers."""
    last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last > _SECONDS:
            note(f"{text}: {done} of {total}")
            last = now
        yield item
