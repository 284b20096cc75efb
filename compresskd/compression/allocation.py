"""Share one budget among layers, so that the sum of their errors is the least."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_STATES = 20_000


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
    """Choose a size for every layer, at most `budget` together, of the least sum of errors.

    Greedy steps along each layer's lower convex hull, which are optimal up to the last step (Shoham and Gersho 1988,
    "Efficient bit allocation for an arbitrary set of quantizers", section III), give a choice and a bound. What may
    lie between both, sizes off the hulls among it, is searched by a dynamic programme (Dyer, Riha and Walker 1995,
    "A hybrid dynamic programming/branch-and-bound algorithm for the multiple-choice knapsack problem"): the choice is
    optimal unless more than MAX_STATES partial ones stay open, of which only the most promising are then followed.

    Args:
        curves: the sizes that each layer can have, in any order.
        budget: what all layers may cost together.

    Raises:
        BudgetTooSmallError: with the least number that is possible.
    """
    chosen, rate = _greedy(curves, budget)
    return chosen if rate is None else _searched(curves, budget, chosen, rate)


def _greedy(curves: Mapping[str, Sequence[Size]], budget: int) -> tuple[dict[str, Size], float | None]:
    """A choice along the hulls, and the gain of the first step that did not fit; None where all did."""
    hulls = {name: _lower_hull(sizes) for name, sizes in curves.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    spent = sum(size.cost for size in chosen.values())
    if spent > budget:
        raise BudgetTooSmallError(budget, spent)
    rising = {name: iter(hull[1:]) for name, hull in hulls.items()}
    queue: list[tuple[float, str, Size]] = []
    rate: float | None = None
    for name in hulls:
        _push(queue, name, chosen[name], rising[name])
    while queue:
        loss, name, size = heapq.heappop(queue)
        cost = size.cost - chosen[name].cost
        if spent + cost > budget:
            rate = -loss if rate is None else rate
            continue  # a layer whose next step is too dear takes no more; cheaper ones go on
        chosen[name], spent = size, spent + cost
        _push(queue, name, size, rising[name])
    return chosen, rate


def _searched(
    curves: Mapping[str, Sequence[Size]], budget: int, start: dict[str, Size], rate: float
) -> dict[str, Size]:
    """The best choice that fits; `start` is one, and no choice can do better than the bound that `rate` gives.

    With the price `rate` of a parameter, a layer's size has a price of its own, error + rate * cost, over that of the
    layer's cheapest. The prices of a choice that beats `start` sum up to less than the gap between it and the bound.
    """
    prices = {
        name: np.array([size.error + rate * size.cost for size in sizes]) for name, sizes in curves.items()
    }
    costs = {name: np.array([size.cost for size in sizes], dtype=np.int64) for name, sizes in curves.items()}
    found = sum(size.error for size in start.values())
    gap = found - (sum(float(price.min()) for price in prices.values()) - rate * budget)
    rest = sum(int(cost.min()) for cost in costs.values())
    spent, over = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name, price in prices.items():
        more = price - price.min()
        rest -= int(costs[name].min())
        kept = np.flatnonzero(more <= gap)
        cost, extra = spent[:, None] + costs[name][kept], over[:, None] + more[kept]
        order = _open(cost, extra, (extra <= gap) & (cost <= budget - rest), rate)
        if not len(order):  # rounding aside, nothing beats it
            return start
        trail.append((name, order // len(kept), kept[order % len(kept)]))
        spent, over = cost.flat[order], extra.flat[order]
    place = int(np.argmin(over - rate * spent))
    chosen = {}
    for name, parents, sizes in reversed(trail):
        chosen[name] = curves[name][int(sizes[place])]
        place = int(parents[place])
    better = sum(size.error for size in chosen.values()) < found
    return {name: chosen[name] for name in curves} if better else start


def _open(cost: np.ndarray, extra: np.ndarray, fits: np.ndarray, rate: float) -> np.ndarray:
    """Flat positions of partial choices that fit and that no other beats in both cost and error."""
    places = np.flatnonzero(fits)
    order = places[np.lexsort((extra.flat[places], cost.flat[places]))]
    error = extra.flat[order] - rate * cost.flat[order]
    best = np.minimum.accumulate(error)
    order = order[np.concatenate([[True], error[1:] < best[:-1]])[: len(order)]]
    if len(order) > MAX_STATES:
        order = order[np.argsort(extra.flat[order], kind="stable")[:MAX_STATES]]
    return order


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
