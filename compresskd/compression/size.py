"""The size that a factorized model is to have: one of six kinds of target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Lt
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from torch import nn

from compresskd import tt
from compresskd.compression.costs import ALL, INCLUDED, PARAMETERS, UNITS
from compresskd.layers import surgery
from compresskd.options import Count, NonNegative, OptionError, Share, checked, one_of
from compresskd.tt.decompose.metric import Metric


def _one_number(budget: Any) -> Any:
    if isinstance(budget, list | tuple):
        listed = ",".join(map(str, budget))
        expected = (
            f"one number (a list is for one run of strategy=compress; here write -m compress.budget={listed})"
        )
        raise PydanticCustomError("one_of", "{allowed}", {"allowed": expected})
    return budget


@checked
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
        budget_of: 'parameters', 'bytes' of the stored file, 'macs', multiply-accumulates of a sample, or 'latency',
            the time of a sample on this machine.
        budget_over: what it is a fraction of: 'all' of the model, or 'included', the weights of the layers that may be
            factorized.
        max_drop: percentage points of validation accuracy that may be lost; the smallest model that keeps it.

    Raises:
        OptionError: for two targets beside `rank`, or a value out of its range.
    """

    rank: Count
    ranks: Mapping[str, Count | Sequence[Count]] | None = None
    tolerance: Share | None = None
    energy: Share | None = None
    budget: Annotated[float, BeforeValidator(_one_number), Gt(0), Lt(1)] | None = None
    budget_of: Annotated[str, one_of(*UNITS)] = PARAMETERS
    budget_over: Annotated[str, one_of(ALL, INCLUDED)] = ALL
    max_drop: NonNegative | None = None

    def __post_init__(self) -> None:
        targets = [
            name for name in ("ranks", "tolerance", "energy", "budget", "max_drop") if self._given(name)
        ]
        if len(targets) > 1:
            others = f"null beside {', '.join(targets[1:])}: one target for the size"
            raise OptionError(targets[0], getattr(self, targets[0]), others)
        if self.budget_of != PARAMETERS and not self.is_shared:
            expected = f"{PARAMETERS} without compress.budget or compress.max_drop"
            raise OptionError("budget_of", self.budget_of, expected)
        if self.budget_over != ALL and self.budget is None:
            raise OptionError("budget_over", self.budget_over, f"{ALL} without compress.budget")

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

    def rounded(self, name: str, layer: nn.Module, metric: Metric | None = None) -> nn.Module | tt.Skipped:
        """A layer that holds a tensor train already, at lower ranks.

        Args:
            name: of the layer.
            layer: that holds the train.
            metric: in which the error at given ranks is the least; a tolerance counts that of the weight.
        """
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
            raise OptionError("ranks", list(caps), f"{len(ranks)} numbers for '{name}', one for each bond")
        lower = [min(pair) for pair in zip(ranks, caps, strict=True)]
        return layer.round(ranks=lower, metric=metric)  # pyright: ignore[reportCallIssue]
