"""A configuration as flat text: dotted keys, values that can be compared and shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from sys import intern
from typing import Any

_ENCODE = json.JSONEncoder(sort_keys=True).encode


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Nested config -> {dotted key: canonical text}. Lists are one value; 4 and 4.0 are the same value."""
    flat: dict[str, str] = {}
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    while waiting:  # a loop, not a recursion: a hostile record may be nested deeply
        prefix, node = waiting.pop()
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and value:
                waiting.append((key + ".", value))
            else:
                flat[intern(key)] = intern(canonical(value))
    return flat


def canonical(value: Any) -> str:
    """The text by which values are compared and shown: JSON, without quotes around plain text."""
    kind = type(value)
    if kind is str:
        return value
    if kind is int:
        return str(value)
    if kind is float and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return _ENCODE(value)
