"""The steps of a chain with the rows of x in front: z [B P, b, C], forward, backward, and prepared for inference.

MKL runs a product whose right operand has few columns at a tenth of the rate of its transpose, and a batch of
products with few columns at a quarter of the rate of one product over all rows: shapes are turned accordingly.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.execution.contraction import Step

NARROW = 16
FEW = 8
PAGE = 1024
MANY_ROWS = 128


def forward(
    x: Tensor, Gs: Sequence[Tensor], steps: Sequence[Step], bias: Tensor | None, *, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """x [B, N] to [B, M], and if kept the operand of every step: [B P C, b] where it is turned, else [B P, b, C].

    Differentiable by autograd as well as by `backward`.
    """
    B, z, last, trail = x.shape[0], x, len(steps) - 1, []
    differentiable = keep or torch.is_grad_enabled()
    for t, (G, step) in enumerate(zip(Gs, steps, strict=True)):
        a, b, C, R = step.a, step.b, step.C, B * step.P
        if C == 1:
            # One wide product; the bias rides along where this is the last step.
            operand = z if z.shape == (R, b) else z.reshape(R, b)
            z = linear(operand, G, bias if t == last and step.P == 1 else None)
        elif is_turned(step, differentiable):
            operand = z.reshape(R, b, C).transpose(1, 2).reshape(R * C, b)
            z = F.linear(operand, G).view(R, C, a).transpose(1, 2)
        else:
            operand = z.reshape(R, b, C)
            z = across(G, operand)
        if keep:
            trail.append(operand)
    fused, num_outputs = steps[last].C == steps[last].P == 1, steps[last].a * steps[last].P * steps[last].C
    y = z if fused else z.reshape(B, num_outputs)
    return y if fused or bias is None else y + bias, trail


def backward(
    dy: Tensor,
    Gs: Sequence[Tensor],
    steps: Sequence[Step],
    trail: Sequence[Tensor],
    needs_x: bool,
    needs_G: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """dx [B, N] and dG_t [a, b] = sum over rows of dz_{t+1} z_t^T, dz_t = G_t^T dz_{t+1}."""
    B, dz, dGs = dy.shape[0], dy, []
    for t in reversed(range(len(steps))):
        G, z, a, b, C, R = Gs[t], trail[t], steps[t].a, steps[t].b, steps[t].C, B * steps[t].P
        if C == 1:
            dz = dz.reshape(R, a)
        elif is_turned(steps[t], True):
            dz = dz.reshape(R, a, C).transpose(1, 2).reshape(R * C, a)
        else:
            dz = dz.reshape(R, a, C)
        if needs_G:
            dGs.append(outer(dz, z) if dz.dim() == 2 else outer_sum(dz, z))
        if t == 0 and not needs_x:
            return None, dGs[::-1]
        if dz.dim() == 3:
            dz = across(G.t(), dz)
        else:
            dz = _times(dz, G)
            dz = dz if C == 1 else dz.view(R, C, b).transpose(1, 2)
    return dz.reshape(B, steps[0].b * steps[0].P * steps[0].C), dGs[::-1]


def is_turned(step: Step, differentiable: bool) -> bool:
    """Whether a step with C > 1 goes over z with C before b, as one product over all rows.

    Else it is a batch of products, whose gradient by G is made for every row before it is summed.
    """
    return step.C < NARROW or (differentiable and step.a * step.b > step.C * (step.a + step.b))


def across(G: Tensor, z: Tensor) -> Tensor:
    """G [a, b] on each of z [R, b, C]."""
    R, _, C = z.shape
    return torch.mm(G, z[0]).view(1, -1, C) if R == 1 else torch.bmm(G.unsqueeze(0).expand(R, *G.shape), z)


def _times(z: Tensor, G: Tensor) -> Tensor:
    """z [R, a] times G [a, b]."""
    if G.shape[1] < NARROW and z.shape[0] >= FEW:
        return F.linear(z, G.t().contiguous())
    return _eight_by_eight(z, G) if _clashes(z, G.shape[1]) else torch.mm(z, G)


def linear(z: Tensor, G: Tensor, bias: Tensor | None) -> Tensor:
    """z [R, b] times G^T for G [a, b], as F.linear."""
    if not _clashes(z, G.shape[0]):
        return F.linear(z, G, bias)
    y = _eight_by_eight(z, G.t())
    return y if bias is None else y.add_(bias)


def _clashes(z: Tensor, columns: int) -> bool:
    """Whether a thin product writes rows that lie multiples of a page apart: they crowd each other out of the cache."""
    return z.shape[1] <= FEW and columns % PAGE == 0 and z.shape[0] % FEW == 0 and z.shape[0] > FEW


def _eight_by_eight(z: Tensor, W: Tensor) -> Tensor:
    """z [R, k] times W [k, w], as many rows at a time as the cache has ways."""
    batch = z.reshape(-1, FEW, z.shape[1])
    return torch.bmm(batch, W.expand(batch.shape[0], *W.shape)).view(-1, W.shape[1])


def outer(dz: Tensor, z: Tensor) -> Tensor:
    """dz [R, a] and z [R, b] to dz^T z [a, b]."""
    (R, a), b = dz.shape, z.shape[1]
    if b < a and (R >= MANY_ROWS or (b < FEW and R >= FEW)):
        turned = torch.mm(z.t(), dz).t()
        # A gradient in the other order is slow to add to the one before; only very narrow ones are not.
        return turned if b < FEW else turned.contiguous()
    return torch.mm(dz.t(), z)


def outer_sum(dz: Tensor, z: Tensor) -> Tensor:
    """The sum over r of dz_r z_r^T [a, b], for dz [R, a, C] and z [R, b, C]: a batch, or one long product."""
    (R, a, C), b = dz.shape, z.shape[1]
    if R == 1:
        return torch.mm(dz[0], z[0].t())
    if a * b <= C * (a + b):
        return torch.bmm(dz, z.transpose(1, 2)).sum(0)
    return torch.mm(dz.transpose(0, 1).reshape(a, R * C), z.transpose(0, 1).reshape(b, R * C).t())


def prepare(
    Gs: Sequence[Tensor], steps: Sequence[Step], rows: int
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`forward` for a fixed number of rows, with all sizes worked out beforehand: the small batches' overhead."""
    *parts, last = [_prepare_step(G, step, rows) for G, step in zip(Gs, steps, strict=True)]
    fused = steps[-1].C == 1 and steps[-1].P == 1
    shape = (rows, steps[-1].a * steps[-1].P * steps[-1].C)
    if len(parts) == 1 and fused and steps[0].C == 1:
        first = parts[0]
        return lambda x, bias: last(first(x, None), bias)

    def run(z: Tensor, bias: Tensor | None) -> Tensor:
        for part in parts:
            z = part(z, None)
        z = last(z, bias if fused else None).reshape(shape)
        return z if fused or bias is None else z.add_(bias)

    return run


def _prepare_step(G: Tensor, step: Step, rows: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """One step; only the last may be given a bias, and only where it ends in rows of outputs."""
    a, b, C, R = step.a, step.b, step.C, rows * step.P
    plain, mm, bmm = F.linear, torch.mm, torch.bmm
    if C == 1 and b <= FEW and a % PAGE == 0:
        return lambda z, bias: linear(z.reshape(R, b), G, bias)
    if C == 1:
        return lambda z, bias: plain(z.reshape(R, b), G, bias)
    if R == 1:
        return lambda z, bias: mm(G, z.reshape(b, C))
    if C < NARROW:
        return lambda z, bias: (
            plain(z.reshape(R, b, C).transpose(1, 2).reshape(R * C, b), G).view(R, C, a).transpose(1, 2)
        )
    spread = G.unsqueeze(0).expand(R, a, b)
    return lambda z, bias: bmm(spread, z.reshape(R, b, C))
