"""A chain whose backward computes the intermediates again, a chunk of rows at a time.

What autograd would keep for a chain is several times the input and the output; here only x and the small group
matrices are kept, and the intermediates of one chunk live in cache. Chen et al., Training deep nets with sublinear
memory cost, 2016.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compresskd.tt.contraction import NARROW, Plan, Step, columns_trail, run_chain

WIDE_SUM = 64


class RecomputedChain(torch.autograd.Function):
    """(x [B, N], steps, plan, *G_t) to y [B, M]; gradients of x and of every G_t."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: Sequence[Step], plan: Plan, *Gs: Tensor) -> Tensor:
        """Run the chain and keep only its operands."""
        ctx.save_for_backward(x, *Gs)
        ctx.steps, ctx.plan = steps, plan
        return run_chain(x, Gs, steps, plan, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """dG_t = sum over rows of dz_{t+1} z_t^T, dz_t = G_t^T dz_{t+1}, chunk by chunk."""
        x, *Gs = ctx.saved_tensors
        steps, plan, B = ctx.steps, ctx.plan, x.shape[0]
        needs_x, needs_G = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:])
        dx = torch.empty_like(x) if needs_x else None
        # Sums over thousands of rows in bf16 would lose the small terms; they gather in float32.
        wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        dGs = [torch.zeros(G.shape, dtype=wide, device=G.device) for G in Gs] if needs_G else None
        chunk = plan.chunk or B
        backward = _columns_backward if plan.columns else _rows_backward
        for start in range(0, B, chunk):
            part = slice(start, start + chunk)
            backward(x[part], grad[part], Gs, steps, None if dx is None else dx[part], dGs)
        grads = [None] * len(Gs) if dGs is None else [dG.to(G.dtype) for dG, G in zip(dGs, Gs, strict=True)]
        return dx, None, None, *grads


def _columns_backward(
    x: Tensor,
    grad: Tensor,
    Gs: Sequence[Tensor],
    steps: Sequence[Step],
    dx: Tensor | None,
    dGs: list[Tensor] | None,
) -> None:
    B = x.shape[0]
    trail = columns_trail(x, Gs, steps)
    last = steps[-1]
    dz = grad.t().contiguous().view(last.P, last.a, last.C * B)
    for t in reversed(range(len(steps))):
        step, G, z = steps[t], Gs[t], trail[t]
        dz = dz.view(step.P, step.a, step.C * B)
        if dGs is not None:
            _add_outer(dGs[t], dz, z)
        if t == 0 and dx is None:
            return
        dz = _across(G.t(), dz)
    if dx is not None:
        dx.copy_(dz.view(-1, B).t())


def _across(G: Tensor, z: Tensor) -> Tensor:
    """G [a, b] on each of z [P, b, K]."""
    return torch.mm(G, z[0]) if z.shape[0] == 1 else torch.bmm(G.unsqueeze(0).expand(z.shape[0], *G.shape), z)


def _rows_backward(
    x: Tensor,
    grad: Tensor,
    Gs: Sequence[Tensor],
    steps: Sequence[Step],
    dx: Tensor | None,
    dGs: list[Tensor] | None,
) -> None:
    B, z, trail = x.shape[0], x, []
    for G, step in zip(Gs, steps, strict=True):
        z = z.reshape(B * step.P, step.b, step.C)
        trail.append(z)
        z = _rows_product(G, z)
    dz = grad
    for t in reversed(range(len(steps))):
        step, G, z = steps[t], Gs[t], trail[t]
        dz = dz.reshape(B * step.P, step.a, step.C)
        if dGs is not None:
            _add_outer(dGs[t], dz, z)
        if t == 0 and dx is None:
            return
        dz = _rows_product(G.t(), dz)
    if dx is not None:
        dx.copy_(dz.reshape(B, -1))


def _rows_product(G: Tensor, z: Tensor) -> Tensor:
    """G [a, b] on each of z [R, b, C]."""
    R, b, C = z.shape
    if C == 1:
        return torch.mm(z.view(R, b), G.t())
    if C < NARROW:
        return torch.mm(z.transpose(1, 2).reshape(R * C, b), G.t()).view(R, C, -1).transpose(1, 2)
    return torch.bmm(G.unsqueeze(0).expand(R, *G.shape), z)


def _add_outer(total: Tensor, dz: Tensor, z: Tensor) -> None:
    """total [a, b] += sum over p of dz [P, a, K] z [P, b, K]^T: one long product, or a batch of wide ones."""
    P, a, K = dz.shape
    if P == 1:
        product = torch.mm(dz[0], z[0].t())
    elif K >= WIDE_SUM and P <= WIDE_SUM:
        product = torch.bmm(dz, z.transpose(1, 2)).sum(0)
    elif K == 1:
        product = torch.mm(dz.view(P, a).t(), z.reshape(P, -1))
    else:
        long = dz.transpose(0, 1).reshape(a, P * K)
        product = torch.mm(long, z.transpose(1, 2).reshape(P * K, -1))
    total.add_(product)
