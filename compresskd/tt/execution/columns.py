"""The steps of a chain with the rows of x last: z [P, b, C B], so that every product is wide and none needs a copy.

Only x and the output are transposed, best a chunk of rows at a time, while they are in cache.
"""

from collections.abc import Sequence

from torch import Tensor

from compresskd.tt.execution.contraction import Step
from compresskd.tt.execution.rows import across, outer_sum


def forward(
    x: Tensor, Gs: Sequence[Tensor], steps: Sequence[Step], bias: Tensor | None, *, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """x [B, N] to the output [B, M], a transposed view, and if kept the operand [P, b, C B] of every step."""
    B, first = x.shape[0], steps[0]
    z = x.view(B, first.P, first.b).permute(1, 2, 0) if first.C == 1 else x.t().contiguous()
    trail = []
    for t, (step, G) in enumerate(zip(steps, Gs, strict=True)):
        # Where C is 1 the first operand has its shape already, in strides that no view could give it.
        z = z if t == 0 and step.C == 1 else z.view(step.P, step.b, step.C * B)
        if keep:
            trail.append(z)
        z = across(G, z)
    last = steps[-1]
    y = z.view(last.a * last.P * last.C, B)
    if bias is not None:
        y.add_(bias.unsqueeze(1))
    return y.t(), trail


def backward(
    dy: Tensor,
    Gs: Sequence[Tensor],
    steps: Sequence[Step],
    trail: Sequence[Tensor],
    needs_x: bool,
    needs_G: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """dx [B, N], a transposed view, and dG_t [a, b]."""
    B, last, dGs = dy.shape[0], steps[-1], []
    dz = dy.t() if last.P == last.C == 1 else dy.t().contiguous()
    for t in reversed(range(len(steps))):
        step = steps[t]
        dz = dz.view(step.P, step.a, step.C * B)
        if needs_G:
            dGs.append(outer_sum(dz, trail[t]))
        if t == 0 and not needs_x:
            return None, dGs[::-1]
        dz = across(Gs[t].t(), dz)
    return dz.view(steps[0].b * steps[0].P * steps[0].C, B).t(), dGs[::-1]
