"""What a user should know of the data although it is no reason to refuse them; the record keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Notice:
    """One observation.

    Attributes:
        kind: a word that programs can look for, such as 'identical' or 'skipped'.
        split: train, validation or test; None for the whole set.
        count: how many samples, files or folders it is about.
        text: what a person reads.
        examples: the first few of what is counted.
    """

    kind: str
    split: str | None
    count: int
    text: str
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: str, split: str | None, found: Sequence[str], text: str) -> "Notice":
        """About everything in `found`, with the first 20 as examples."""
        return cls(kind, split, len(found), text, tuple(found[:MAX_EXAMPLES]))


def listed(found: Sequence[str]) -> str:
    """The first 20, and how many more."""
    more = len(found) - MAX_EXAMPLES
    return "; ".join(found[:MAX_EXAMPLES]) + (f"; and {more:,} more" if more > 0 else "")


def shown(path: object) -> str:
    """A path as text that can be printed and stored, also where its bytes are no UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()
