"""The product x W^T with W in tensor-train format: plans, and the steps that they take.

A chain plan takes neighbouring cores together in groups and contracts the groups one after the other, from the
right or from the left. Either way step t is one product per row of its own: with the group as a matrix G_t [a, b],
z [B P, b, C] becomes G_t z [B P, a, C], and no permutation is needed between steps, since contiguous cores
[r, m, n, s] give (r m, n s) from the right and, permuted once to [m, s, r, n], (m s, r n) from the left. P counts
the uncontracted modes on the one side of the group, C those on the other.

Shape legend: B rows of x; N inputs; M outputs; a, b, P, C as above. Layout `rows` keeps B in front; layout `columns`
puts it last, [P, b, C B], so that every product is wide. `chunk` rows at a time keep the intermediates in cache.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from torch import Tensor

from compresskd.tt.decompose.cores import merge

Shapes = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """How to contract: `kind` is

    - "folded": one product with the dense weight (rebuilt in training, cached at inference);
    - "chain": the groups in turn, their operands kept in training;
    - "recompute": a chain whose backward computes the operands of a chunk again instead of keeping them;
    - "streamed": the dense weight rebuilt in blocks of rows, in forward and in backward, never held.

    `cuts` are the places (1 ... d - 1) between groups; `from_right` the direction; `columns` the layout;
    `chunk` the rows at a time (0: all).
    """

    kind: str
    cuts: tuple[int, ...] = ()
    from_right: bool = True
    columns: bool = False
    chunk: int = 0

    def __str__(self) -> str:
        if self.kind in ("folded", "streamed"):
            return self.kind
        arrow = "right-to-left" if self.from_right else "left-to-right"
        layout = "columns" if self.columns else "rows"
        return f"{self.kind} {arrow} cut at {self.cuts}, {layout}" + (f"/{self.chunk}" if self.chunk else "")


@dataclass(frozen=True)
class Step:
    """The sizes of one step: G [a, b] on z [B P, b, C]."""

    a: int
    b: int
    P: int
    C: int


def dense_sizes(shapes: Shapes) -> tuple[int, int]:
    """Outputs and inputs of the dense weight."""
    num_outputs = num_inputs = 1
    for _, m, n, _ in shapes:
        num_outputs, num_inputs = num_outputs * m, num_inputs * n
    return num_outputs, num_inputs


def all_cuts(num_cores: int) -> Iterator[tuple[int, ...]]:
    """Every choice of places at which to cut, at least one."""
    for chosen in product((False, True), repeat=num_cores - 1):
        cuts = tuple(k for k, cut in enumerate(chosen, 1) if cut)
        if cuts:
            yield cuts


def steps(shapes: Sequence[Sequence[int]], cuts: Sequence[int], *, from_right: bool) -> list[Step]:
    """The steps over groups of cores of these shapes [r, m, n, s], in the order in which they run."""
    edges = (0, *cuts, len(shapes))
    groups = []
    for start, stop in pairwise(edges):
        m = math.prod([shape[1] for shape in shapes[start:stop]])
        n = math.prod([shape[2] for shape in shapes[start:stop]])
        groups.append((shapes[start][0], m, n, shapes[stop - 1][3]))
    found = []
    for k, (r, m, n, s) in enumerate(groups):
        left, right = groups[:k], groups[k + 1 :]
        if from_right:
            found.append(
                Step(r * m, n * s, math.prod([g[2] for g in left]), math.prod([g[1] for g in right]))
            )
        else:
            found.append(
                Step(m * s, r * n, math.prod([g[1] for g in left]), math.prod([g[2] for g in right]))
            )
    return found[::-1] if from_right else found


def least_macs(shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-accumulates of one row by the chain with the least of them."""
    paths = product(all_cuts(len(shapes)), (True, False))
    works = [
        sum(step.a * step.b * step.P * step.C for step in steps(shapes, cuts, from_right=from_right))
        for cuts, from_right in paths
    ]
    return min(works, default=math.prod(math.prod(shape) for shape in shapes))


def matrices(cores: Sequence[Tensor], cuts: Sequence[int], *, from_right: bool) -> list[Tensor]:
    """G_t [a, b] of every step, in the order in which they run; differentiable."""
    edges = (0, *cuts, len(cores))
    found = []
    for start, stop in pairwise(edges):
        group = merge(cores[start:stop]) if stop - start > 1 else cores[start]
        r, m, n, s = group.shape
        if from_right:
            found.append(group.reshape(r * m, n * s))
        else:
            found.append(group.permute(1, 3, 0, 2).reshape(m * s, r * n))
    return found[::-1] if from_right else found
