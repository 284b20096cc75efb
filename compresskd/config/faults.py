"""Faults of a configuration: found all together, each with its key, what came, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        key: of the configuration, dotted.
        text: what came, what is allowed, what to write instead.
    """

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigError(ValueError):
    """A configuration with faults; nothing has been trained or written."""

    def __init__(self, faults: Sequence[Fault]):
        self.faults = list(dict.fromkeys(faults))
        count = len(self.faults)
        head = f"{count} fault{'s' if count > 1 else ''} in the configuration:"
        super().__init__("\n".join([head, *(f"  {fault}" for fault in self.faults)]))


def nearest(name: str, names: Iterable[str]) -> str:
    """'; did you mean NAME?' where a name is close, else the allowed ones where they are few, else nothing."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; allowed: {', '.join(names)}" if 0 < len(names) <= 40 else ""
