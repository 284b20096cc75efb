"""All plans for given cores and rows in the order of a cost model over the measured machine.

Every plan's time is the sum of its products and copies at the rates of `calibration.Machine`. Plans are made by batch
bucket: the next power of two.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compresskd.tt.execution.contraction import Plan, Step, all_cuts, steps
from compresskd.tt.execution.machine import Machine
from compresskd.tt.execution.rows import NARROW
from compresskd.tt.execution.streamed import BLOCK_ROWS, best_cut

CHUNKS = (0, 32, 64, 256)
MOST_WORK = 6
FREE_NUMBERS = 1 << 23
AUTOGRAD_OPERATIONS = 30

Shapes = tuple[tuple[int, int, int, int], ...]


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


def seconds(plan: Plan, shapes: Shapes, rows: int, training: bool, on: Machine, itemsize: int) -> float:
    """What the model gives the plan."""
    time = _training_seconds if training else _inference_seconds
    return time(plan, shapes, rows, on, itemsize)


def _fits(plan: Plan, shapes: Shapes, rows: int) -> bool:
    """Whether what is kept for backward, and its gradient beside it, take no more than a dense weight's gradient."""
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
            if not training or chunk == 0:
                yield Plan("chain", cuts, from_right, False, chunk)
            if rows >= NARROW:
                yield Plan("chain", cuts, from_right, True, chunk)
            if training and chunk:
                yield Plan("recompute", cuts, from_right, False, chunk)
                yield Plan("recompute", cuts, from_right, True, chunk)


def _inference_seconds(plan: Plan, shapes: Shapes, rows: int, on: Machine, itemsize: int) -> float:
    num_outputs, num_inputs = dense_sizes(shapes)
    if plan.kind == "folded":
        return on.mm_seconds(rows, num_inputs, num_outputs, itemsize=itemsize)
    path = steps(shapes, plan.cuts, from_right=plan.from_right)
    return _chain_seconds(path, plan, rows, on, itemsize)


def _chain_seconds(path: Sequence[Step], plan: Plan, rows: int, on: Machine, itemsize: int) -> float:
    """Forward once, chunk by chunk; two operations per chunk go to slicing and writing the output."""
    chunk = min(plan.chunk or rows, rows)
    # Reshaping and dispatch cost about as much as a tiny product; the closures of whole rows cost little else.
    overhead = (len(path) + 1 + plan.columns) * on.operation
    one = _columns_seconds if plan.columns else _rows_seconds
    seconds = overhead + sum(one(step, chunk, on, itemsize) for step in path)
    seconds += sum(on.spill_seconds(itemsize * chunk * step.a * step.P * step.C) for step in path[:-1])
    outputs = chunk * path[-1].a * path[-1].P * path[-1].C
    if plan.columns:
        seconds += on.turn_seconds(outputs) + 2 * on.operation
    elif chunk < rows:
        seconds += on.copy_seconds(outputs, itemsize=itemsize) + 2 * on.operation
    if plan.columns and path[0].C > 1:
        seconds += on.turn_seconds(chunk * path[0].b * path[0].P * path[0].C)
    return seconds * rows / chunk


def _rows_seconds(step: Step, rows: int, on: Machine, itemsize: int) -> float:
    a, b, P, C = step.a, step.b, step.P, step.C
    if C == 1 or rows * P == 1:
        # A single row's product streams the matrix either way round.
        return on.mm_seconds(rows * P * C, b, a, itemsize=itemsize)
    if C < NARROW:
        copies = on.turn_seconds(rows * P * C * b) + on.turn_seconds(rows * P * C * a)
        return on.mm_seconds(rows * P * C, b, a, itemsize=itemsize) + copies
    return on.bmm_seconds(rows * P, a, b, C, itemsize=itemsize)


def _columns_seconds(step: Step, rows: int, on: Machine, itemsize: int) -> float:
    return on.bmm_seconds(step.P, step.a, step.b, step.C * rows, itemsize=itemsize)


def _training_seconds(plan: Plan, shapes: Shapes, rows: int, on: Machine, itemsize: int) -> float:
    """Forward and backward, with what autograd and the merging of groups cost."""
    num_outputs, num_inputs = dense_sizes(shapes)
    dense = on.mm_seconds(rows, num_inputs, num_outputs, itemsize=itemsize)
    weight = num_outputs * num_inputs
    if plan.kind == "folded":
        merge = _merge_seconds(shapes, (), on, itemsize)
        # Forward and backward of the merging each permute the whole weight, and so does the cut to its size.
        return 3 * (dense + merge) + 6 * on.copy_seconds(weight, itemsize=itemsize)
    if plan.kind == "streamed":
        return 3 * dense + 6 * _stream_seconds(shapes, on, itemsize)
    path = steps(shapes, plan.cuts, from_right=plan.from_right)
    forward = _chain_seconds(path, plan, rows, on, itemsize)
    merge = 3 * _merge_seconds(shapes, plan.cuts, on, itemsize)
    if plan.kind == "recompute":
        return 4 * forward + merge + AUTOGRAD_OPERATIONS * on.operation
    # What is kept is written to memory and read again.
    kept = sum(rows * step.P * step.C * step.b for step in path)
    return 3 * forward + merge + AUTOGRAD_OPERATIONS * on.operation + on.copy_seconds(kept, itemsize=itemsize)


def _merge_seconds(shapes: Shapes, cuts: Sequence[int], on: Machine, itemsize: int) -> float:
    """The products and permutations that make groups out of cores."""
    edges, seconds = (0, *cuts, len(shapes)), 0.0
    for start, stop in pairwise(edges):
        left = shapes[start][0] * shapes[start][1] * shapes[start][2]
        for r, m, n, s in shapes[start + 1 : stop]:
            seconds += on.mm_seconds(left, r, m * n * s, itemsize=itemsize)
            left *= m * n
            seconds += on.copy_seconds(left * s, itemsize=itemsize)
    return seconds


def _stream_seconds(shapes: Shapes, on: Machine, itemsize: int) -> float:
    """Building the dense weight once, block by block."""
    cut = best_cut(shapes)
    rank = shapes[cut][0]
    m1, n1, m2, n2 = _halves(shapes, cut)
    seconds = m1 * on.bmm_seconds(m2, n1, rank, n2, itemsize=itemsize)
    blocks = max(1, m1 * m2 // BLOCK_ROWS)
    return seconds + 4 * blocks * on.operation + _merge_seconds(shapes, (cut,), on, itemsize)


def _halves(shapes: Shapes, cut: int) -> tuple[int, int, int, int]:
    m1 = n1 = m2 = n2 = 1
    for _, m, n, _ in shapes[:cut]:
        m1, n1 = m1 * m, n1 * n
    for _, m, n, _ in shapes[cut:]:
        m2, n2 = m2 * m, n2 * n
    return m1, n1, m2, n2


def dense_sizes(shapes: Shapes) -> tuple[int, int]:
    """Outputs and inputs of the dense weight."""
    num_outputs = num_inputs = 1
    for _, m, n, _ in shapes:
        num_outputs, num_inputs = num_outputs * m, num_inputs * n
    return num_outputs, num_inputs
