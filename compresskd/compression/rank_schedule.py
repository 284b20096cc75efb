"""Schedules of falling ranks for `MultiStage`: each returns a list of `{rank, alpha, ...}` steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Gt

from compresskd.options import Count, Fraction, NonNegative, OptionError, checked

Step = dict[str, Any]
Ratio = Annotated[float, Gt(1)]


def explicit(stages: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The steps as written: `[{rank: 32, alpha: 0.7}, {rank: 8, alpha: 0.5}]`."""
    return [dict(step) for step in stages]


@checked
def geometric(
    rank: Count, num_stages: Count = 3, ratio: Ratio = 2.0, alpha: Sequence[Fraction] | None = None
) -> list[Step]:
    """Ranks that fall by `ratio` each step and end at `rank`.

    Args:
        rank: of the last step.
        num_stages: number of steps.
        ratio: above 1.
        alpha: the teacher's share in the first and in the last step, linear between; None keeps the objective's.

    Raises:
        ValueError: for a value out of its range.
    """
    ranks = [round(rank * ratio**power) for power in reversed(range(num_stages))]
    return _steps(ranks, alpha)


@checked
def linear(
    rank: Count, first_rank: Count, num_stages: Count = 3, alpha: Sequence[Fraction] | None = None
) -> list[Step]:
    """Ranks that fall by equal steps from `first_rank` to `rank`.

    Raises:
        ValueError: for a value out of its range.
    """
    least = rank + num_stages - 1
    if num_stages > 1 and first_rank < least:
        raise OptionError(
            "first_rank", first_rank, f">= {least}, so that {num_stages} ranks can fall to {rank}"
        )
    last = max(1, num_stages - 1)
    ranks = [round(first_rank + (rank - first_rank) * i / last) for i in range(num_stages)]
    return _steps([*ranks[:-1], rank], alpha)


@checked
def until_drop(
    first_rank: Count, max_drop: NonNegative, ratio: Ratio = 2.0, least_rank: Count = 1
) -> list[Step]:
    """Ranks that fall by `ratio` until validation accuracy has fallen by more than `max_drop` points.

    The step that falls too far is undone, and the student of the step before it is the result.

    Raises:
        ValueError: for a value out of its range.
    """
    if first_rank < least_rank:
        raise OptionError("first_rank", first_rank, f">= {least_rank}, the least rank")
    ranks: list[int] = []
    rank = float(first_rank)
    while round(rank) >= least_rank and (not ranks or round(rank) < ranks[-1]):
        ranks.append(round(rank))
        rank = min(rank / ratio, ranks[-1] - 1)
    return [{"rank": r, "max_drop": max_drop} for r in ranks]


def _steps(ranks: Sequence[int], alpha: Sequence[float] | None) -> list[Step]:
    if alpha is None:
        return [{"rank": rank} for rank in ranks]
    if len(alpha) != 2:
        raise OptionError("alpha", alpha, "[first, last]")
    first, last = alpha
    gaps = max(1, len(ranks) - 1)
    return [{"rank": rank, "alpha": first + (last - first) * i / gaps} for i, rank in enumerate(ranks)]
