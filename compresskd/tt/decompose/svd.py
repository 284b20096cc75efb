"""Truncated singular value decompositions, by the route that the matrix's shape makes cheapest.

Routes, for a matrix [a, b] with short side s = min(a, b):
- plain: LAPACK's SVD in float64, for s <= 128 (exact, and cheap there);
- gram: eigenvectors of the short side's Gram matrix in float64, for s <= 512, and whenever many ranks are wanted;
- randomized: Halko, Martinsson, Tropp, SIAM Review 53 (2011), algorithm 4.4 with orthonormalised power
  iterations, where s > 512 and few ranks are wanted.
The Gram matrix squares the condition number, which costs singular values below 1e-8 of the largest; the product
of the two factors is an orthogonal projection of the matrix all the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PLAIN_SIDE = 128
GRAM_SIDE = 512
GRAM_BLOCK, ROUGH_BLOCK = 1 << 22, 1 << 20
ROUGH_ERROR = 1e-4
POWER_ITERATIONS = 3


@dataclass(frozen=True)
class Split:
    """A matrix [a, b] as `left` [a, r] with orthonormal columns times `right` [r, b]."""

    left: Tensor
    right: Tensor
    discarded: float
    """Squared Frobenius norm of matrix - left @ right."""


def split(
    matrix: Tensor,
    *,
    rank: int | None = None,
    discard: float = 0.0,
    eps: float | None = None,
    total: float | None = None,
) -> Split:
    """The best split of at most `rank` columns, or of as few as leave out at most `discard` (squared norm).

    Both limits hold together when both are given: the rank cap wins. Singular values below `eps` times
    the largest (the rounding of the matrix's dtype by default) count as zero; at least one column is kept. `total` is
    the squared norm of the matrix where the caller knows it.
    """
    short = min(matrix.shape)
    cap = short if rank is None else min(rank, short)
    total = squared_norm(matrix) if total is None else total
    if short <= PLAIN_SIDE:
        return _plain(matrix, cap, discard, total, eps)
    if short <= GRAM_SIDE or cap > short // 4:
        if rank is None and short > GRAM_SIDE:
            return _growing(matrix, discard, total, eps)
        return _gram(matrix, cap, discard, total, eps)
    return _randomized(matrix, cap, discard, total, eps)


def squared_norm(matrix: Tensor) -> float:
    """Squared Frobenius norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def gram(matrix: Tensor, *, precise: bool = True) -> Tensor:
    """matrix @ matrix^T [a, a] in float64, block by block; unless `precise` only the sum over blocks is in float64."""
    a, b = matrix.shape
    step = max(1, (GRAM_BLOCK if precise else ROUGH_BLOCK) // a)
    result = torch.zeros(a, a, dtype=torch.float64, device=matrix.device)
    for start in range(0, b, step):
        block = matrix[:, start : start + step]
        if precise:
            block = block.double()
            result.addmm_(block, block.T)
        else:
            result += block @ block.T
    return result


def spectrum(matrix: Tensor, *, num_values: int | None = None) -> Tensor:
    """Squared singular values, falling, in float64: all of them, or estimates of the largest `num_values`."""
    short = min(matrix.shape)
    if num_values is None or short <= GRAM_SIDE:
        tall = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        values = torch.linalg.eigvalsh(gram(tall)).flip(0).clamp_min(0.0)
        return values[:num_values]
    basis = _range(matrix, min(short, num_values + max(16, num_values // 2)), power_iterations=1)
    values = torch.linalg.eigvalsh(gram(basis.T @ matrix)).flip(0).clamp_min(0.0)
    return values[:num_values]


def kept(values: Tensor, cap: int, discard: float, total: float, eps: float) -> int:
    """How many of the squared singular values `values` (falling) to keep; `total` is the squared norm."""
    tails = (total - values.cumsum(0)).clamp_min(0.0)
    enough = int((tails > discard).sum()) + 1 if discard > 0.0 else len(values)
    nonzero = int((values > eps**2 * values[0]).sum())
    return max(1, min(cap, enough, nonzero, len(values)))


def _eps(matrix: Tensor, eps: float | None) -> float:
    return torch.finfo(matrix.dtype).eps if eps is None else eps


def _plain(matrix: Tensor, cap: int, discard: float, total: float, eps: float | None) -> Split:
    U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    squares = S.square()
    # A singular value is accurate to the rounding of the largest, so the tail is summed from its small end.
    tails = squares.flip(0).cumsum(0).flip(0) - squares
    enough = int((tails > discard).sum()) + 1 if discard > 0.0 else len(S)
    nonzero = int((_eps(matrix, eps) * S[0] < S).sum())
    rank = max(1, min(cap, enough, nonzero))
    right = S[:rank, None] * Vh[:rank]
    return Split(U[:, :rank].to(matrix.dtype), right.to(matrix.dtype), float(squares[rank:].sum()))


def _gram(matrix: Tensor, cap: int, discard: float, total: float, eps: float | None) -> Split:
    wide = matrix.shape[0] <= matrix.shape[1]
    # A Gram matrix in float32 is twice as fast, and good for errors well above its rounding.
    precise = matrix.dtype == torch.float64 or 0.0 < discard < ROUGH_ERROR * total or cap == min(matrix.shape)
    values, vectors = torch.linalg.eigh(gram(matrix if wide else matrix.T, precise=precise))
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    rank = kept(values, cap, discard, total, _eps(matrix, eps))
    if not precise and float(values[rank:].sum()) < ROUGH_ERROR * total:
        values, vectors = torch.linalg.eigh(gram(matrix if wide else matrix.T))
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
        rank = kept(values, cap, discard, total, _eps(matrix, eps))
    basis = vectors[:, :rank].to(matrix.dtype)
    if wide:
        right = basis.T @ matrix
        return Split(basis, right, max(0.0, float(values[rank:].sum())))
    Q, R = torch.linalg.qr(matrix @ basis)
    return Split(Q, R @ basis.T, max(0.0, float(values[rank:].sum())))


def _range(matrix: Tensor, size: int, *, power_iterations: int = POWER_ITERATIONS) -> Tensor:
    """Orthonormal columns [a, size] that nearly span the leading left singular vectors."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    probe = torch.randn(matrix.shape[1], size, generator=generator, dtype=torch.float32)
    basis = torch.linalg.qr(matrix @ probe.to(matrix)).Q
    for _ in range(power_iterations):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    return basis


def _randomized(matrix: Tensor, cap: int, discard: float, total: float, eps: float | None) -> Split:
    size = min(*matrix.shape, cap + max(32, cap))
    basis = _range(matrix, size)
    projected = basis.T @ matrix
    values, vectors = torch.linalg.eigh(gram(projected))
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1).to(matrix.dtype)
    rank = kept(values, cap, discard, total, _eps(matrix, eps))
    right = vectors[:, :rank].T @ projected
    return Split(basis @ vectors[:, :rank], right, max(0.0, total - squared_norm(right)))


def _growing(matrix: Tensor, discard: float, total: float, eps: float | None) -> Split:
    """For a tolerance on a large square unfolding: more columns until what is left out is small enough."""
    cap = 64
    while cap <= min(matrix.shape) // 4:
        result = _randomized(matrix, cap, discard, total, eps)
        if result.discarded <= discard or result.left.shape[1] < cap:
            return result
        cap *= 2
    return _gram(matrix, min(matrix.shape), discard, total, eps)
