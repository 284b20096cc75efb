"""How long a plan takes: the sum of its products and copies at the rates of `machine.Machine`."""

from collections.abc import Sequence
from itertools import pairwise

from compresskd.tt.execution.contraction import Plan, Shapes, Step, dense_sizes, steps
from compresskd.tt.execution.machine import Machine
from compresskd.tt.execution.rows import NARROW, is_turned
from compresskd.tt.execution.streamed import BLOCK_ROWS, best_cut

# What autograd and Python take in a training step, in operations of the machine. Those of a step of a chain are more
# than was measured, so that small layers keep the plans, and recorded runs the bits, that they had: tests/golden.
NODES, NODES_OF_A_STEP, NODES_OF_A_MERGE, NODES_OF_A_CHUNK = 16, 14, 14, 40


def seconds(plan: Plan, shapes: Shapes, rows: int, training: bool, on: Machine, itemsize: int) -> float:
    """One call, or in training one forward and backward."""
    time = _training_seconds if training else _inference_seconds
    return time(plan, shapes, rows, on, itemsize)


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
    if plan.kind == "folded":
        return (
            _dense_seconds(shapes, rows, on, itemsize)
            + _merging_seconds(shapes, (), on, itemsize)
            + NODES * on.operation
        )
    if plan.kind == "streamed":
        return _dense_seconds(shapes, rows, on, itemsize) + _stream_seconds(shapes, on, itemsize)
    path = steps(shapes, plan.cuts, from_right=plan.from_right)
    merging = _merging_seconds(shapes, plan.cuts, on, itemsize) + NODES * on.operation
    if plan.kind == "recompute":
        chunks = rows / min(plan.chunk, rows)
        overhead = len(path) * (NODES_OF_A_STEP + chunks * NODES_OF_A_CHUNK) * on.operation
        edges = 2 * on.copy_seconds(rows * sum(dense_sizes(shapes)), itemsize=itemsize)
        return 4 * _chain_seconds(path, plan, rows, on, itemsize) + edges + merging + overhead
    overhead = NODES_OF_A_STEP * len(path) * on.operation
    # What is kept is written to memory and read again.
    kept = on.copy_seconds(sum(rows * step.P * step.C * step.b for step in path), itemsize=itemsize)
    return sum(_step_seconds(step, rows, on, itemsize) for step in path) + merging + overhead + kept


def _dense_seconds(shapes: Shapes, rows: int, on: Machine, itemsize: int) -> float:
    """The three products of a training step with the dense weight."""
    num_outputs, num_inputs = dense_sizes(shapes)
    return _product_seconds(rows, num_inputs, num_outputs, on, itemsize)


def _product_seconds(rows: int, inner: int, columns: int, on: Machine, itemsize: int) -> float:
    """A product [rows, inner] x [inner, columns] and its two gradients."""
    sizes = ((rows, inner, columns), (rows, columns, inner), (columns, rows, inner))
    return sum(on.mm_seconds(*size, itemsize=itemsize) for size in sizes)


def _step_seconds(step: Step, rows: int, on: Machine, itemsize: int) -> float:
    """One step of a chain, forward and backward, by autograd."""
    a, b, R, C = step.a, step.b, rows * step.P, step.C
    spill = 2 * on.spill_seconds(itemsize * R * C * a)
    if C == 1:
        return _product_seconds(R, b, a, on, itemsize) + spill
    if is_turned(step, True):
        turns = 2 * (on.turn_seconds(R * b * C) + on.turn_seconds(R * a * C))
        return _product_seconds(R * C, b, a, on, itemsize) + turns + spill
    batches = ((a, b, C), (b, a, C), (a, C, b))
    products = sum(on.bmm_seconds(R, *size, itemsize=itemsize) for size in batches)
    return products + on.copy_seconds(R * a * b, itemsize=itemsize) + spill


def _merging_seconds(shapes: Shapes, cuts: Sequence[int], on: Machine, itemsize: int) -> float:
    """The products and permutations that make groups out of cores, and those of their gradients."""
    edges, seconds = (0, *cuts, len(shapes)), 0.0
    for start, stop in pairwise(edges):
        left = shapes[start][0] * shapes[start][1] * shapes[start][2]
        for r, m, n, s in shapes[start + 1 : stop]:
            seconds += _product_seconds(left, r, m * n * s, on, itemsize)
            left *= m * n
            seconds += 2 * _permute_seconds(left * s, n * s, on, itemsize) + NODES_OF_A_MERGE * on.operation
    return seconds


def _permute_seconds(numbers: int, run: int, on: Machine, itemsize: int) -> float:
    """Moving numbers in runs that stay together: short ones one by one."""
    moved = on.turn_seconds(numbers) * min(1.0, max(0.25, 4 / run))
    return moved + on.spill_seconds(itemsize * numbers)


def _stream_seconds(shapes: Shapes, on: Machine, itemsize: int) -> float:
    """Building the dense weight block by block, in forward and again in backward, and the gradients of both groups."""
    cut = best_cut(shapes)
    rank = shapes[cut][0]
    m1, n1, m2, n2 = _halves(shapes, cut)
    build = on.bmm_seconds(m2, n1, rank, n2, itemsize=itemsize)
    gradients = on.bmm_seconds(m2, n1, n2, rank, itemsize=itemsize) + on.bmm_seconds(
        m2, rank, n1, n2, itemsize=itemsize
    )
    blocks = max(1, m1 * m2 // BLOCK_ROWS)
    operations = (6 * blocks + 12 * m1 + NODES) * on.operation
    passes = 2 * on.copy_seconds(m1 * n1 * m2 * n2, itemsize=itemsize)
    merging = _merging_seconds(shapes, (cut,), on, itemsize)
    return m1 * (2 * build + gradients) + passes + operations + merging


def _halves(shapes: Shapes, cut: int) -> tuple[int, int, int, int]:
    m1 = n1 = m2 = n2 = 1
    for _, m, n, _ in shapes[:cut]:
        m1, n1 = m1 * m, n1 * n
    for _, m, n, _ in shapes[cut:]:
        m2, n2 = m2 * m, n2 * n
    return m1, n1, m2, n2
