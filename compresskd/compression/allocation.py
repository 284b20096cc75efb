"""Share one budget among layers: each next step goes where it removes most error for what it costs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """A size that a layer can have.

    Attributes:
        cost: parameters, or bytes: in what the budget counts.
        error: what the layer adds to the model's error at this size; 0 for the dense layer.
        dense: whether this is the layer as it was.
        form: what the size stands for, to whoever asked.
    """

    cost: int
    error: float
    dense: bool = False
    form: Any = None


class BudgetTooSmallError(ValueError):
    """Even the smallest form of every layer takes more than the budget; `least` is what these take."""

    def __init__(self, budget: int, least: int):
        super().__init__(f"got {budget:,} for the layers; their least is {least:,}")
        self.least = least


def allocate(curves: Mapping[str, Sequence[Size]], budget: int) -> dict[str, Size]:
    """Choose a size for every layer, at most `budget` together.

    Greedy steps along each layer's lower convex hull, which is optimal for the sum of errors up to the last step
    (Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers", section III). What the
    last step leaves over goes to the steps that still fit.

    Args:
        curves: the sizes that each layer can have, in any order.
        budget: what all layers may cost together.

    Raises:
        BudgetTooSmallError: with the least number that is possible.
    """
    hulls = {name: _lower_hull(sizes) for name, sizes in curves.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    spent = sum(size.cost for size in chosen.values())
    if spent > budget:
        raise BudgetTooSmallError(budget, spent)
    rising = {name: iter(hull[1:]) for name, hull in hulls.items()}
    queue: list[tuple[float, str, Size]] = []
    for name in hulls:
        _push(queue, name, chosen[name], rising[name])
    while queue:
        _, name, size = heapq.heappop(queue)
        cost = size.cost - chosen[name].cost
        if spent + cost > budget:
            continue  # a layer whose next step is too dear takes no more; cheaper ones go on
        chosen[name], spent = size, spent + cost
        _push(queue, name, size, rising[name])
    return chosen


def _push(queue: list[tuple[float, str, Size]], name: str, now: Size, rising: Iterator[Size]) -> None:
    following = next(rising, None)
    if following is not None:
        gain = (now.error - following.error) / (following.cost - now.cost)
        heapq.heappush(queue, (-gain, name, following))


def _lower_hull(sizes: Sequence[Size]) -> list[Size]:
    """The sizes worth having: more cost always buys less error, at a falling rate."""
    hull: list[Size] = []
    for size in sorted(sizes, key=lambda s: (s.cost, s.error)):
        if hull and size.error >= hull[-1].error:
            continue
        # a step whose rate only differs by rounding stays: one of twice the cost may not fit where it does
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) < (1 - 1e-9) * _rate(hull[-2], size):
            hull.pop()
        hull.append(size)
    if not hull:
        raise ValueError("a layer without any size cannot be given a budget")
    return hull


def _rate(a: Size, b: Size) -> float:
    return (a.error - b.error) / (b.cost - a.cost)
