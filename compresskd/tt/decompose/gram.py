"""Gram matrices, and the leading eigenvalues and vectors of one for less than all of them take.

Few of many eigenvalues come by subspace iteration, each round a Chebyshev polynomial of the Gram matrix that damps the
unwanted part of its spectrum (Zhou, Saad, Tiago, Chelikowsky, J. Comput. Phys. 219 (2006), algorithm 4.1). What it
finds is checked by its residuals; where they are too large it finds nothing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK, ROUGH_BLOCK = 1 << 22, 1 << 20
PANEL = 256
FORMED_SIDE = 768  # up to here the Gram matrix is formed; above, products with both factors are less work
ROUNDS = 6
MAX_DEGREE = 8
CORRECTIONS, RESOLVED = 4, 1e-6
ROUNDING = 1e-6  # of sums of products in float32, relative


def gram(matrix: Tensor, *, precise: bool = True) -> Tensor:
    """matrix @ matrix^T [a, a] in float64, block by block; unless `precise` only the sum over blocks is in float64."""
    a, b = matrix.shape
    step = max(1, (BLOCK if precise else ROUGH_BLOCK) // a)
    result = torch.zeros(a, a, dtype=torch.float64, device=matrix.device)
    for start in range(0, b, step):
        block = matrix[:, start : start + step]
        block = block.double() if precise else block
        for top in range(0, a, PANEL):
            # rows up to the diagonal alone: the others mirror them
            panel, left = block[top : top + PANEL], block[: top + PANEL]
            if precise:
                result[top : top + PANEL, : top + PANEL].addmm_(panel, left.T)
            else:
                result[top : top + PANEL, : top + PANEL] += panel @ left.T
    for top in range(PANEL, a, PANEL):
        result[:top, top : top + PANEL] = result[top : top + PANEL, :top].T
    return result


def leading_values(matrix: Tensor, count: int, *, total: float, share: float) -> Tensor | None:
    """The largest `count` eigenvalues of matrix @ matrix^T, falling, in float64; None where that is not reached.

    What they leave of `total`, the sum of all, is never too small, and too large by about its `share` at most: an
    eigenvalue is off by its residual squared over the gap to the rest (Parlett 1980, theorem 11.7.1), for which stands
    the gap to the least Ritz value. Products are in the dtype of the matrix, float32.
    """
    a = matrix.shape[0]
    width = count + max(16, count)
    if width > a // 2:
        return None
    times = _operator(matrix)
    generator = torch.Generator(device="cpu").manual_seed(0)
    probe = torch.randn(a, width, generator=generator, dtype=torch.float32)
    basis = torch.linalg.qr(times(probe.to(matrix))).Q
    for _ in range(ROUNDS):
        image = times(basis)
        values, turn = torch.linalg.eigh((basis.T @ image).double())
        values, turn = values.flip(0), turn.flip(1).to(matrix)
        basis, image = basis @ turn, image @ turn
        residuals = (image - basis * values.to(matrix)).square().sum(0).double().sqrt()
        gaps = (values - values[-1]).clamp_min(torch.finfo(torch.float64).tiny)
        off = (residuals.square() / gaps).minimum(residuals)[:count]
        if float(off.sum()) + ROUNDING * total <= share * (total - float(values[:count].sum())):
            return values[:count].clamp_min(0.0)
        if not float(values[-1]) > torch.finfo(matrix.dtype).eps * float(values[0]):
            return None
        basis = torch.linalg.qr(_filtered(times, basis, image, values, count)).Q
    return None


def leading_vectors(square: Tensor, count: int, *, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues [count], falling, and vectors [a, count] of a Gram matrix [a, a] in float64; None where not reached.

    The vectors of the matrix in float32 are corrected by one step of Newton's method at a time (Davies and Modi, Linear
    Algebra Appl. 77 (1986)) until they span the true space within an angle of `tolerance`, by their residuals over the
    gap to the rest (Davis and Kahan 1970).
    """
    scale = float(square.diagonal().sum()) / len(square)
    if not scale > 0:
        return None
    rough, directions = torch.linalg.eigh((square / scale).float())
    found, rest, others = directions[:, -count:].double(), rough[:-count].double(), directions[:, :-count]
    for _ in range(CORRECTIONS):
        found = torch.linalg.qr(found).Q
        values, turn = torch.linalg.eigh(found.T @ (square @ found) / scale)
        found = found @ turn
        residual = square @ found / scale - found * values
        gap = float(values[0] - rest[-1])
        if not gap > RESOLVED * float(values[-1]):
            return None
        if float(residual.norm()) <= tolerance * gap:
            return values.flip(0) * scale, found.flip(1)
        steps = (others.T @ residual.float()).double() / (values - rest[:, None])
        found = found + (others @ steps.float()).double()
    return None


def _operator(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """What multiplies by matrix @ matrix^T."""
    if matrix.shape[0] > FORMED_SIDE:
        return lambda x: matrix @ (matrix.T @ x)
    formed = gram(matrix, precise=False).to(matrix)
    return lambda x: formed @ x


def _filtered(
    times: Callable[[Tensor], Tensor], basis: Tensor, image: Tensor, values: Tensor, count: int
) -> Tensor:
    """A Chebyshev polynomial of the matrix, small on [0, the least Ritz value], times its Ritz vectors [a, w].

    The degree is as large as the dominant vectors allow: of the others enough digits must be left.
    """
    bound = float(values[-1])
    growth = [math.acosh(max(1.0, 2 * float(values[k]) / bound - 1)) for k in (0, count - 1)]
    digits = math.log(1e-4 / torch.finfo(basis.dtype).eps)
    degree = max(2, min(MAX_DEGREE, int(digits / max(growth[0] - growth[1], 1e-3))))
    # each vector is divided by what it grows by, so that nothing overflows
    ratio = (2 * values / bound - 1).clamp_min(1.0)
    rate = (ratio + (ratio.square() - 1).sqrt()).to(basis)
    before, now = basis, ((2 / bound) * image - basis) / rate
    for _ in range(degree - 1):
        before, now = now, ((4 / bound) * times(now) - 2 * now) / rate - before / rate.square()
    return now
