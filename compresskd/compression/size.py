"""The size that a factorized model is to have: one of six kinds of target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from compresskd import tt
from compresskd.layers import surgery

BUDGETS = ("parameters", "bytes")


@dataclass(frozen=True)
class Size:
    """A target for the size of a model: `rank`, with `ranks`, where no other is given.

    Attributes:
        rank: largest TT-rank.
        ranks: layer-name pattern to the largest TT-rank, or to a list of all TT-ranks for given modes; the first
            pattern that fits counts, other layers take `rank`.
        tolerance: largest relative error of each layer (of its output where that is data-aware, else its weight).
        energy: share of each layer's squared norm to keep.
        budget: fraction of the dense model that the whole factorized model may take.
        budget_of: 'parameters' or 'bytes' (of the stored file).
        max_drop: percentage points of validation accuracy that may be lost; the smallest model that keeps it.

    Raises:
        ValueError: for two targets beside `rank`, or a value out of its range.
    """

    rank: int
    ranks: Mapping[str, int | Sequence[int]] | None = None
    tolerance: float | None = None
    energy: float | None = None
    budget: float | None = None
    budget_of: str = "parameters"
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: came {self.rank}; allowed: 1 or more")
        for pattern, rank in (self.ranks or {}).items():
            caps = rank if isinstance(rank, Sequence) and rank and not isinstance(rank, str) else [rank]
            if not all(isinstance(cap, int) and cap >= 1 for cap in caps):
                raise ValueError(
                    f"compress.ranks: came {rank!r} for '{pattern}'; allowed: 1 or more, or a list of such"
                )
        targets = [
            name for name in ("ranks", "tolerance", "energy", "budget", "max_drop") if self._given(name)
        ]
        if len(targets) > 1:
            keys = ", ".join(f"compress.{name}" for name in targets)
            raise ValueError(
                f"compress.{targets[0]}: came together with others ({keys}); allowed: one target for the size"
            )
        for name in ("tolerance", "energy", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"compress.{name}: came {value}; allowed: above 0 and below 1, or null")
        if self.budget_of not in BUDGETS:
            raise ValueError(f"compress.budget_of: came {self.budget_of!r}; allowed: {', '.join(BUDGETS)}")
        if self.max_drop is not None and self.max_drop < 0:
            raise ValueError(
                f"compress.max_drop: came {self.max_drop}; allowed: 0 or more percentage points, or null"
            )

    def _given(self, name: str) -> bool:
        return getattr(self, name) not in (None, {})

    @property
    def is_shared(self) -> bool:
        """Whether layers are sized together, not each by itself."""
        return self.budget is not None or self.max_drop is not None

    @property
    def is_rank(self) -> bool:
        """Whether ranks are the target."""
        return self.tolerance is None and self.energy is None and not self.is_shared

    def rank_of(self, name: str) -> int | Sequence[int]:
        """The largest TT-rank of the layer called `name`, or all of its TT-ranks."""
        for pattern, rank in (self.ranks or {}).items():
            if surgery.matches(name, [pattern], []):
                return rank
        return self.rank

    def of_layer(self, name: str) -> dict[str, Any]:
        """The target for one layer, as `tt.factorize` takes it."""
        if self.tolerance is not None:
            return {"tolerance": self.tolerance}
        if self.energy is not None:
            return {"energy": self.energy}
        cap = self.rank_of(name)
        return {"rank": cap} if isinstance(cap, int) else {"ranks": tuple(cap)}

    def rounded(self, name: str, layer: nn.Module) -> nn.Module | tt.Skipped:
        """A layer that holds a tensor train already, rounded without forming the dense weight."""
        if not hasattr(layer, "round"):
            return tt.Skipped(f"{type(layer).__name__} has no ranks that can be lowered")
        if self.is_shared:
            return tt.Skipped("factorized before: a budget is shared among dense layers only")
        if self.energy is not None or self.tolerance is not None:
            tolerance = self.tolerance if self.tolerance is not None else (1 - float(self.energy or 0)) ** 0.5
            return layer.round(tolerance=tolerance)  # pyright: ignore[reportCallIssue]
        ranks: tuple[int, ...] = layer.ranks  # pyright: ignore[reportAssignmentType]
        cap = self.rank_of(name)
        caps = [cap] * len(ranks) if isinstance(cap, int) else cap
        if len(caps) != len(ranks):
            raise ValueError(
                f"compress.ranks: came {list(caps)} for '{name}', which has {len(ranks)} TT-ranks"
            )
        return layer.round(ranks=[min(pair) for pair in zip(ranks, caps, strict=True)])  # pyright: ignore[reportCallIssue]
