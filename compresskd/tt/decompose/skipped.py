"""What is returned in place of a module when a layer stays dense."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A layer that stays dense, and why; the reason goes into the record as it stands."""

    reason: str
