"""Memory that is free and that the process still holds."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any


def give_back() -> None:
    """Give what is free back to the system, where the C library can be asked to (glibc).

    A model of many small tensors is freed in pieces, which the heap keeps: beside the next model, whose tensors may
    come from elsewhere, they would count as used.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], Any] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # no such library, or function, on this system
        return None
