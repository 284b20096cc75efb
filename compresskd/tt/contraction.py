"""The product x W^T with W in tensor-train format: plans, and how they run.

A chain plan takes neighbouring cores together in groups and contracts the groups one after the other, from the
right or from the left. Either way step t is one product per row of its own: with the group as a matrix G_t [a, b],
z [B P, b, C] becomes G_t z [B P, a, C], and no permutation is needed between steps, since contiguous cores
[r, m, n, s] give (r m, n s) from the right and, permuted once to [m, s, r, n], (m s, r n) from the left. P counts
the uncontracted modes on the one side of the group, C those on the other.

Shape legend: B rows of x; N inputs; M outputs; a, b, P, C as above. Layout `rows` keeps B in front; layout `columns`
puts it last, [P, b, C B], so that every product is wide. `chunk` rows at a time keep the intermediates in cache.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.cores import merge

NARROW = 16


@dataclass(frozen=True)
class Plan:
    """How to contract: `kind` is

    - "folded": one product with the dense weight (rebuilt in training, cached at inference);
    - "chain": the groups in turn, by autograd in training;
    - "recompute": a chain whose backward computes the intermediates of a chunk again instead of keeping them;
    - "streamed": the dense weight rebuilt in blocks of rows, in forward and in backward, never held.

    `cuts` are the bonds (1 ... d - 1) between groups; `from_right` the direction; `columns` the layout;
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


def all_cuts(num_cores: int) -> Iterator[tuple[int, ...]]:
    """Every choice of bonds at which to cut, at least one."""
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


def chain_rows(x: Tensor, Gs: Sequence[Tensor], steps: Sequence[Step], bias: Tensor | None = None) -> Tensor:
    """x [B, N] to [B, M], with B in front throughout; differentiable."""
    B, z, last = x.shape[0], x, len(steps) - 1
    for t, (G, step) in enumerate(zip(Gs, steps, strict=True)):
        a, b, P, C = step.a, step.b, step.P, step.C
        if C == 1:
            # One wide product; the bias rides along where this is the last step.
            z = F.linear(z.reshape(B * P, b), G, bias if t == last and P == 1 else None)
        elif B * P == 1:
            z = torch.mm(G, z.reshape(b, C))
        elif C < NARROW:
            # A batch of products with few columns runs at a quarter of the rate of one product over all rows.
            rows = z.reshape(B * P, b, C).transpose(1, 2).reshape(B * P * C, b)
            z = torch.mm(rows, G.t()).view(B * P, C, a).transpose(1, 2)
        else:
            z = _SharedProduct.apply(G, z.reshape(B * P, b, C))
    y = z.reshape(B, steps[last].a * steps[last].P * steps[last].C)
    if bias is None or (steps[last].C == 1 and steps[last].P == 1):
        return y
    return y + bias


class _SharedProduct(torch.autograd.Function):
    """G [a, b] on each of z [R, b, C].

    Autograd's own backward of a broadcast product would hold one gradient of G for each of the R, then sum them.
    """

    @staticmethod
    def forward(ctx: Any, G: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(G, z)
        return torch.bmm(G.unsqueeze(0).expand(z.shape[0], *G.shape), z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        G, z = ctx.saved_tensors
        (a, b), dG, dz = G.shape, None, None
        if ctx.needs_input_grad[0]:
            dG = grad.transpose(0, 1).reshape(a, -1) @ z.transpose(1, 2).reshape(-1, b)
        if ctx.needs_input_grad[1]:
            dz = torch.bmm(G.t().unsqueeze(0).expand(z.shape[0], b, a), grad)
        return dG, dz


def chain_columns(x: Tensor, Gs: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """x [B, N] to the transpose [M, B] of the output, with B last throughout."""
    return columns_trail(x, Gs, steps)[-1].view(-1, x.shape[0])


def columns_trail(x: Tensor, Gs: Sequence[Tensor], steps: Sequence[Step]) -> list[Tensor]:
    """The operands z_t [P, b, C B] of all steps, and the output [1 or P, a, C B] of the last."""
    B = x.shape[0]
    trail = [x.view(B, steps[0].P, steps[0].b).permute(1, 2, 0) if steps[0].C == 1 else x.t().contiguous()]
    for G, step in zip(Gs, steps, strict=True):
        z = trail[-1]
        if step.P == 1:
            trail[-1] = z = z.reshape(1, step.b, step.C * B)
            trail.append(torch.mm(G, z[0]))
        else:
            trail[-1] = z = z.view(step.P, step.b, step.C * B) if len(trail) > 1 or step.C > 1 else z
            trail.append(torch.bmm(G.unsqueeze(0).expand(step.P, step.a, step.b), z))
    return trail


def run_chain(
    x: Tensor, Gs: Sequence[Tensor], steps: Sequence[Step], plan: Plan, bias: Tensor | None
) -> Tensor:
    """x [B, N] to [B, M] as the plan says, without a graph."""
    B = x.shape[0]
    chunk = plan.chunk or B
    if not plan.columns and chunk >= B:
        return chain_rows(x, Gs, steps, bias)
    y = x.new_empty(B, steps[-1].a * steps[-1].P * steps[-1].C)
    for start in range(0, B, chunk):
        part, out = x[start : start + chunk], y[start : start + chunk]
        if not plan.columns:
            out.copy_(chain_rows(part, Gs, steps, bias))
        elif bias is None:
            out.copy_(chain_columns(part, Gs, steps).t())
        else:
            torch.add(chain_columns(part, Gs, steps).t(), bias, out=out)
    return y


def compile_rows(
    Gs: Sequence[Tensor], steps: Sequence[Step], rows: int, bias: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """`chain_rows` for a fixed number of rows, with all sizes worked out beforehand: the small batches' overhead."""
    last = len(steps) - 1
    fused = bias if steps[last].C == 1 and steps[last].P == 1 else None
    parts = [
        _compile_step(G, step, rows, fused if t == last else None)
        for t, (G, step) in enumerate(zip(Gs, steps, strict=True))
    ]
    shape = (rows, steps[last].a * steps[last].P * steps[last].C)
    loose = bias if fused is None else None
    if len(parts) == 2 and loose is None and steps[0].C == steps[1].C == 1:
        first, second = parts
        return lambda x: second(first(x))

    def run(z: Tensor) -> Tensor:
        for part in parts:
            z = part(z)
        z = z.reshape(shape)
        return z if loose is None else z.add_(loose)

    return run


def _compile_step(G: Tensor, step: Step, rows: int, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    a, b, C, R = step.a, step.b, step.C, rows * step.P
    linear, mm, bmm = F.linear, torch.mm, torch.bmm
    if C == 1:
        return lambda z: linear(z.reshape(R, b), G, bias)
    if R == 1:
        return lambda z: mm(G, z.reshape(b, C))
    if C < NARROW:
        turned = G.t()
        return lambda z: (
            mm(z.reshape(R, b, C).transpose(1, 2).reshape(R * C, b), turned).view(R, C, a).transpose(1, 2)
        )
    spread = G.unsqueeze(0).expand(R, a, b)
    return lambda z: bmm(spread, z.reshape(R, b, C))
