"""All plans for given cores and rows in the order of the cost model. Plans are made by batch bucket: the next power of
two.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compresskd.tt.execution.contraction import Plan, Shapes, all_cuts, dense_sizes, steps
from compresskd.tt.execution.cost_model import seconds
from compresskd.tt.execution.machine import Machine
from compresskd.tt.execution.rows import NARROW

CHUNKS = (0, 32, 64, 256)
MOST_WORK = 6
FREE_NUMBERS = 1 << 23


@dataclass(frozen=True)
class Cost:
    """A plan and the seconds that the model gives it."""

    plan: Plan
    seconds: float


def bucket(rows: int) -> int:
    """The number of rows, rounded up to a power of two, that a plan is made for."""
    return 1 << max(0, rows - 1).bit_length()


def rank_plans(
    shapes: Shapes, rows: int, *, training: bool, machine: Machine, itemsize: int = 4
) -> list[Cost]:
    """All plans, the fastest first."""
    found = [
        Cost(plan, seconds(plan, shapes, rows, training, machine, itemsize))
        for plan in plans(len(shapes), rows, training, _worthwhile(shapes))
        if not training or _fits(plan, shapes, rows)
    ]
    return sorted(found, key=lambda cost: cost.seconds)


def _fits(plan: Plan, shapes: Shapes, rows: int) -> bool:
    """Whether what is kept for backward, and its gradient beside it, take no more than a dense weight's gradient."""
    if plan.kind == "recompute":  # measured slower than its chain: for those that keep too much alone
        return not _fits(Plan("chain", plan.cuts, plan.from_right), shapes, rows)
    if plan.kind == "folded":
        return len(shapes) == 1 or 2 * math.prod(dense_sizes(shapes)) <= FREE_NUMBERS
    if plan.kind != "chain":
        return True
    path = steps(shapes, plan.cuts, from_right=plan.from_right)
    kept = sum(rows * step.P * step.C * step.b for step in path[1:])
    return 2 * kept <= max(math.prod(dense_sizes(shapes)), FREE_NUMBERS)


def _worthwhile(shapes: Shapes) -> list[tuple[tuple[int, ...], bool]]:
    """The paths (cuts, from_right) within a few times the work of the one with the least."""
    work = {}
    for cuts in all_cuts(len(shapes)):
        for from_right in (True, False):
            path = steps(shapes, cuts, from_right=from_right)
            work[cuts, from_right] = sum(step.a * step.b * step.P * step.C for step in path)
    limit = MOST_WORK * min(work.values(), default=0)
    return [path for path, amount in work.items() if amount <= limit]


def plans(
    num_cores: int, rows: int, training: bool, paths: Sequence[tuple[tuple[int, ...], bool]] | None = None
) -> Iterator[Plan]:
    """The plans that can run `rows` rows through `num_cores` cores, along all paths or those given."""
    yield Plan("folded")
    if training and num_cores > 1:
        yield Plan("streamed")
    if paths is None:
        paths = [(cuts, from_right) for cuts in all_cuts(num_cores) for from_right in (True, False)]
    for cuts, from_right in paths:
        for chunk in CHUNKS:
            if chunk >= rows:
                continue
            # in training autograd goes over all rows at once, and what goes chunk by chunk keeps nothing
            kind = "recompute" if training and chunk else "chain"
            yield Plan(kind, cuts, from_right, False, chunk)
            if rows >= NARROW and (chunk or not training):
                yield Plan(kind, cuts, from_right, True, chunk)
