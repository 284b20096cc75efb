"""The Pareto front of two quantities."""

from collections.abc import Sequence


def front(costs: Sequence[float | None], scores: Sequence[float | None]) -> list[bool]:
    """Which points no other point beats: no cost as low with a higher score, no lower cost with a score as high.

    Points that coincide are on the front together or not at all. A point with None is never on it.
    """
    points = [
        (cost, -score, index)
        for index, (cost, score) in enumerate(zip(costs, scores, strict=True))
        if cost is not None and score is not None
    ]
    on_front = [False] * len(costs)
    best: tuple[float, float] | None = None
    for cost, negative_score, index in sorted(points):
        if best is None or negative_score < best[1]:
            best = (cost, negative_score)
        on_front[index] = (cost, negative_score) == best
    return on_front
