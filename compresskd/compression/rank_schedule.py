"""Schedules of falling ranks for `MultiStage`: each returns a list of `{rank, alpha, ...}` steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Step = dict[str, Any]


def explicit(stages: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The steps as written: `[{rank: 32, alpha: 0.7}, {rank: 8, alpha: 0.5}]`."""
    return [dict(step) for step in stages]


def geometric(
    rank: int, num_stages: int = 3, ratio: float = 2.0, alpha: Sequence[float] | None = None
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
    _check(rank, num_stages)
    if not ratio > 1:
        raise ValueError(f"rank_schedule.ratio: came {ratio}; allowed: above 1")
    ranks = [round(rank * ratio**power) for power in reversed(range(num_stages))]
    return _steps(ranks, alpha)


def linear(
    rank: int, first_rank: int, num_stages: int = 3, alpha: Sequence[float] | None = None
) -> list[Step]:
    """Ranks that fall by equal steps from `first_rank` to `rank`.

    Raises:
        ValueError: for a value out of its range.
    """
    _check(rank, num_stages)
    if num_stages > 1 and first_rank - rank < num_stages - 1:
        raise ValueError(
            f"rank_schedule.first_rank: came {first_rank}; allowed: at least {rank + num_stages - 1}, "
            f"so that {num_stages} ranks can fall to {rank}"
        )
    last = max(1, num_stages - 1)
    ranks = [round(first_rank + (rank - first_rank) * i / last) for i in range(num_stages)]
    return _steps([*ranks[:-1], rank], alpha)


def until_drop(first_rank: int, max_drop: float, ratio: float = 2.0, least_rank: int = 1) -> list[Step]:
    """Ranks that fall by `ratio` until validation accuracy has fallen by more than `max_drop` points.

    The step that falls too far is undone, and the student of the step before it is the result.

    Raises:
        ValueError: for a value out of its range.
    """
    _check(least_rank, 1)
    if not ratio > 1:
        raise ValueError(f"rank_schedule.ratio: came {ratio}; allowed: above 1")
    if max_drop < 0:
        raise ValueError(f"rank_schedule.max_drop: came {max_drop}; allowed: 0 or more percentage points")
    if first_rank < least_rank:
        raise ValueError(f"rank_schedule.first_rank: came {first_rank}; allowed: {least_rank} or more")
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
        raise ValueError(f"rank_schedule.alpha: came {list(alpha)}; allowed: null or [first, last]")
    first, last = alpha
    gaps = max(1, len(ranks) - 1)
    return [{"rank": rank, "alpha": first + (last - first) * i / gaps} for i, rank in enumerate(ranks)]


def _check(rank: int, num_stages: int) -> None:
    if rank < 1:
        raise ValueError(f"rank_schedule.rank: came {rank}; allowed: 1 or more")
    if num_stages < 1:
        raise ValueError(f"rank_schedule.num_stages: came {num_stages}; allowed: 1 or more")
