"""Which tokens of a tokenizer are left, where some are left out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What became of the tokens.

    Attributes:
        kept: [V] int64, the number that each token had, by the one that it has.
        size: how many there were.
        whole: the tokenizer that they were of, as `Tokenizer.describe` tells it.
        padding_id: the number that filled up a batch there.
        lost: by split, the share of its tokens that are left out, so that what they stand for falls to others.
    """

    kept: np.ndarray
    size: int
    whole: Mapping[str, Any]
    padding_id: int
    lost: Mapping[str, float]

    def number_of(self, token: int) -> int:
        """The number that a kept token has now."""
        return int(np.flatnonzero(self.kept == token)[0])

    def with_as_many(self, count: int) -> "Vocabulary":
        """With the numbers that come after all tokens, such as one that hides others, as the last."""
        more = count - len(self.kept)
        return replace(self, kept=np.append(self.kept, self.size + np.arange(more)), size=self.size + more)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {"kept": len(self.kept), "of": self.size, "lost": dict(self.lost)}
