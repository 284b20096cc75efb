"""The chain of a plan, a chunk of rows at a time; differentiable as one operation on x, the bias and the cores.

Autograd would keep an operand for every product; here the gradients are written out, only x is kept, and the operands
of a chunk are computed again in backward. Chen et al., Training deep nets with sublinear memory cost, 2016.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from compresskd.tt.decompose.cores import merge
from compresskd.tt.execution import columns, rows
from compresskd.tt.execution.contraction import Plan, Step, matrices, steps


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain or recompute plan with the steps that it takes over given cores."""

    plan: Plan
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, plan: Plan, shapes: Sequence[Sequence[int]]) -> "Chain":
        """For cores of these shapes [r, m, n, s]."""
        return cls(plan, tuple(steps(shapes, plan.cuts, from_right=plan.from_right)))

    @property
    def num_outputs(self) -> int:
        """M, the product of all output modes."""
        return self.steps[-1].a * self.steps[-1].P * self.steps[-1].C

    def forward(self, x: Tensor, Gs: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """x [B, N] to [B, M]."""
        if not 0 < self.plan.chunk < x.shape[0]:
            return self._layout.forward(x, Gs, self.steps, bias)[0].contiguous()
        y = x.new_empty(x.shape[0], self.num_outputs)
        for part in self.parts(x.shape[0]):
            y[part].copy_(self._layout.forward(x[part], Gs, self.steps, bias)[0])
        return y

    def backward(
        self, x: Tensor, dy: Tensor, Gs: Sequence[Tensor], needs_x: bool, needs_G: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """dx and every dG_t."""
        dx, totals = torch.empty_like(x) if needs_x else None, []
        # Sums over thousands of rows in bf16 would lose the small terms; they gather in float32.
        wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        for part in self.parts(x.shape[0]):
            _, trail = self._layout.forward(x[part], Gs, self.steps, None, keep=True)
            dpart, dGs = self._layout.backward(dy[part], Gs, self.steps, trail, needs_x, needs_G)
            if dx is not None:
                dx[part].copy_(dpart)  # pyright: ignore[reportArgumentType]
            if totals:
                for total, dG in zip(totals, dGs, strict=True):
                    total.add_(dG)
            else:
                totals = [dG.to(wide) for dG in dGs]
        return dx, [total.to(x.dtype) for total in totals]

    @property
    def _layout(self) -> Any:
        return columns if self.plan.columns else rows

    def parts(self, num_rows: int) -> Iterator[slice]:
        """The chunks of rows."""
        size = self.plan.chunk or max(1, num_rows)
        for start in range(0, num_rows, size):
            yield slice(start, start + size)


class ChainProduct(torch.autograd.Function):
    """(chain, x [B, N], bias [M] or None, *cores) to y [B, M]; gradients of x, the bias and every core."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, x: Tensor, bias: Tensor | None, *cores: Tensor) -> Tensor:
        """Run the chain."""
        Gs = matrices(cores, chain.plan.cuts, from_right=chain.plan.from_right)
        y = chain.forward(x, Gs, bias)
        ctx.chain, ctx.has_bias = chain, bias is not None
        ctx.save_for_backward(x, *cores, *Gs)
        # a view that was made in here could not be written into, as an activation in place does
        return torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Chunk by chunk; where a graph of the gradients is asked for, by autograd over plain operations."""
        chain, (x, *saved) = ctx.chain, ctx.saved_tensors
        d = len(ctx.needs_input_grad) - 3
        cores, Gs = saved[:d], saved[d:]
        needs_x, needs_bias, *needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_with_graph(chain, x, ctx.has_bias, cores, dy, ctx.needs_input_grad[1:])
        dy = dy.contiguous()  # an expanded one (of a sum) would be laid out anew for every product
        dx, dGs = chain.backward(x, dy, Gs, needs_x, any(needs))
        dbias = dy.sum(0) if needs_bias else None
        return None, dx, dbias, *(core_gradients(cores, chain.plan, dGs) if dGs else [None] * d)


def _with_graph(
    chain: Chain, x: Tensor, has_bias: bool, cores: Sequence[Tensor], dy: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    Gs = matrices(cores, chain.plan.cuts, from_right=chain.plan.from_right)
    y, _ = rows.forward(x, Gs, chain.steps, None)
    wanted = [t for t, need in zip((x, *cores), (needs[0], *needs[2:]), strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True) if wanted else ())
    dx, dcores = next(found) if needs[0] else None, [next(found) if need else None for need in needs[2:]]
    return [dx, dy.sum(0) if has_bias and needs[1] else None, *dcores]


def core_gradients(cores: Sequence[Tensor], plan: Plan, dGs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of every core from those of the matrices that `matrices` made of them."""
    found, edges = [], (0, *plan.cuts, len(cores))
    for (start, stop), dG in zip(pairwise(edges), dGs[::-1] if plan.from_right else dGs, strict=True):
        group = cores[start:stop]
        r, s = group[0].shape[0], group[-1].shape[3]
        if plan.from_right:
            dcore = dG.view(r, dG.shape[0] // r, dG.shape[1] // s, s)
        else:
            dcore = dG.view(dG.shape[0] // s, s, r, dG.shape[1] // r).permute(2, 0, 3, 1)
        found += merge_gradients(group, dcore)
    return found


def merge_gradients(cores: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The gradients of neighbouring cores from that of their `merge` [l, m...m_k, n...n_k, s]."""
    if len(cores) == 1:
        return [grad]
    core, left = cores[-1], merge(cores[:-1])
    (length, m, n, rank), (_, m_k, n_k, s) = left.shape, core.shape
    dP = grad.reshape(length, m, m_k, n, n_k, s).transpose(2, 3).reshape(length * m * n, m_k * n_k * s)
    dcore = torch.mm(left.reshape(-1, rank).t(), dP).view(core.shape)
    dleft = torch.mm(dP, core.reshape(rank, -1).t()).view(left.shape)
    return [*merge_gradients(cores[:-1], dleft), dcore]
