"""The dense weight rebuilt in blocks of rows, in forward and again in backward, and never held.

With the cores merged to two groups A [m_1, n_1, r] and B [r, m_2, n_2], row (i_1, i_2) of the weight is
A[i_1] [n_1, r] times B[:, i_2] [r, n_2], which one batched product writes straight in its final layout. Backward
contracts each block of the weight's gradient at once into the gradients of the two groups.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_ROWS = 512


def best_cut(shapes: Sequence[tuple[int, int, int, int]]) -> int:
    """The cut at which two groups have the fewest parameters together."""
    sizes = []
    for k in range(1, len(shapes)):
        left = right = 1
        for _, m, n, _ in shapes[:k]:
            left *= m * n
        for _, m, n, _ in shapes[k:]:
            right *= m * n
        sizes.append((shapes[k][0] * (left + right), k))
    return min(sizes)[1]


class StreamedLinear(torch.autograd.Function):
    """(x [B, N], A [m_1, n_1, r], B [m_2, r, n_2]) to x W^T [B, M]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Each block of rows of W fills its slice of the output."""
        ctx.save_for_backward(x, left, right)
        m1, m2 = left.shape[0], right.shape[0]
        y = x.new_empty(x.shape[0], m1 * m2)
        for start, stop in _blocks(m1, m2):
            block = _block(left[start:stop], right)
            torch.mm(x, block.t(), out=y[:, start * m2 : stop * m2])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """dW = dy^T x and dx = dy W, both one block of rows at a time."""
        x, left, right = ctx.saved_tensors
        grad = grad.contiguous()
        (m1, n1, r), (m2, _, n2) = left.shape, right.shape
        needs_x, needs_W = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:])
        dx = torch.zeros_like(x) if needs_x else None
        dleft = torch.empty_like(left) if needs_W else None
        dright = torch.zeros_like(right) if needs_W else None
        for start, stop in _blocks(m1, m2):
            dy = grad[:, start * m2 : stop * m2]
            if dx is not None:
                dx.addmm_(dy, _block(left[start:stop], right))
            if dleft is not None and dright is not None:
                dW = torch.mm(dy.t(), x).view(stop - start, m2, n1, n2)
                for i in range(start, stop):
                    part = dW[i - start]
                    torch.sum(torch.bmm(part, right.transpose(1, 2)), 0, out=dleft[i])
                    dright.baddbmm_(left[i].t().unsqueeze(0).expand(m2, r, n1), part)
        return dx, dleft, dright


def _blocks(m1: int, m2: int) -> list[tuple[int, int]]:
    size = max(1, BLOCK_ROWS // m2)
    return [(start, min(start + size, m1)) for start in range(0, m1, size)]


def _block(left: Tensor, right: Tensor) -> Tensor:
    """Rows [k m_2, N] of the weight, from A [k, n_1, r] and B [m_2, r, n_2]."""
    (k, n1, r), (m2, _, n2) = left.shape, right.shape
    block = left.new_empty(k, m2, n1 * n2)
    for i in range(k):
        torch.bmm(left[i].unsqueeze(0).expand(m2, n1, r), right, out=block[i].view(m2, n1, n2))
    return block.view(k * m2, n1 * n2)
