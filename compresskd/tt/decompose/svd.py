"""Truncated singular value decompositions, by the route that the matrix's shape makes cheapest.

Routes, for a matrix [a, b] with short side s = min(a, b):
- plain: LAPACK's SVD in float64, for s <= 128 (exact, and cheap there unless the other side is long);
- gram: eigenvectors of the short side's Gram matrix in float64, for s <= 512, and whenever many ranks are wanted;
  also for s <= 128 where the other side is long, unless the matrix is ill-conditioned or nearly exact at its rank;
- randomized: Halko, Martinsson, Tropp, SIAM Review 53 (2011), algorithm 4.4 with orthonormalised power
  iterations, where s > 512 and few ranks are wanted.
The Gram matrix squares the condition number, which costs singular values below 1e-8 of the largest; the product
of the two factors is an orthogonal projection of the matrix all the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.tt.decompose.gram import ROUNDING, gram, leading_values, leading_vectors

PLAIN_SIDE = 128
GRAM_SIDE = 512
ITERATED_SIDE, ITERATED_SHARE = 256, 12  # above, one in twelve of the eigenvalues is less work than all
ROUGH_ERROR = 1e-4
OVERFLOWING = 1e30
PLAIN_ELEMENTS = 1 << 17  # above, LAPACK's SVD of a long matrix takes ten times its Gram matrix and more
ILL_CONDITIONED = 1e-8  # of squares: a Gram matrix leaves half the digits
ROUGH_EPS, CORRECTED_SIDE = 1e-8, 256
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
        is_long = matrix.numel() > PLAIN_ELEMENTS and cap < short
        part = _long(matrix, cap, discard, total, eps) if is_long else None
        return part or _plain(matrix, cap, discard, total, eps)
    if short <= GRAM_SIDE or cap > short // 4:
        if rank is None and short > GRAM_SIDE:
            return _growing(matrix, discard, total, eps)
        return _gram(matrix, cap, discard, total, eps)
    return _randomized(matrix, cap, discard, total, eps)


def squared_norm(matrix: Tensor) -> float:
    """Squared Frobenius norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def spectrum(matrix: Tensor, *, num_values: int | None = None) -> Tensor:
    """Squared singular values, falling, in float64: all of them, or estimates of the largest `num_values`."""
    short = min(matrix.shape)
    if num_values is None or short <= GRAM_SIDE:
        values = torch.linalg.eigvalsh(gram(_wide(matrix))).flip(0).clamp_min(0.0)
        return values[:num_values]
    basis = _range(matrix, min(short, num_values + max(16, num_values // 2)), power_iterations=1)
    values = torch.linalg.eigvalsh(gram(basis.T @ matrix)).flip(0).clamp_min(0.0)
    return values[:num_values]


def leading_spectrum(matrix: Tensor, num_values: int, *, total: float, share: float) -> Tensor | None:
    """The largest squared singular values of a matrix in float32, falling, in float64; None where not good enough.

    What they leave of `total`, the squared norm, is off by no more than its `share`.
    """
    wide = _wide(matrix)
    if wide.shape[0] > max(ITERATED_SIDE, ITERATED_SHARE * num_values):
        return leading_values(wide, num_values, total=total, share=share)
    values = (
        torch.linalg.eigvalsh(gram(wide, precise=False).float()).double().flip(0)[:num_values].clamp_min(0.0)
    )
    return values if ROUNDING * total <= share * (total - float(values.sum())) else None


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


def _long(matrix: Tensor, cap: int, discard: float, total: float, eps: float | None) -> Split | None:
    """By the Gram matrix of a side of at most PLAIN_SIDE; None where its rounding would show."""
    vectors, values, lost = _leading(gram(_wide(matrix)), cap, discard, total, _eps(matrix, eps))
    if float(values[-1]) < ILL_CONDITIONED * float(values[0]) or lost < ILL_CONDITIONED * total:
        return None
    return _of_basis(matrix, vectors.to(matrix.dtype), lost)


def _gram(matrix: Tensor, cap: int, discard: float, total: float, eps: float | None) -> Split:
    # A Gram matrix in float32 is twice as fast, and good for errors well above its rounding.
    precise = matrix.dtype == torch.float64 or 0.0 < discard < ROUGH_ERROR * total or cap == min(matrix.shape)
    precise = precise or total > OVERFLOWING
    square = gram(_wide(matrix), precise=precise)
    vectors, _, lost = _leading(square, cap, discard, total, _eps(matrix, eps))
    if not precise and lost < ROUGH_ERROR * total:
        vectors, _, lost = _leading(gram(_wide(matrix)), cap, discard, total, _eps(matrix, eps))
    return _of_basis(matrix, vectors.to(matrix.dtype), lost)


def _leading(
    square: Tensor, cap: int, discard: float, total: float, eps: float
) -> tuple[Tensor, Tensor, float]:
    """Eigenvectors [a, r] and values [r] of a Gram matrix, falling, as many as are kept, and the sum of the others."""
    if discard == 0.0 and eps > ROUGH_EPS and len(square) > CORRECTED_SIDE and cap <= len(square) // 8:
        values, vectors = leading_vectors(square, cap, tolerance=eps) or (None, square)
        if values is not None:
            lost = float(square.diagonal().sum() - values.sum())
            if lost > ROUGH_ERROR * total and float(values[-1]) > ILL_CONDITIONED * float(values[0]):
                return vectors, values, lost
    values, vectors = torch.linalg.eigh(square)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    rank = kept(values, cap, discard, total, eps)
    return vectors[:, :rank], values[:rank], float(values[rank:].sum())


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _of_basis(matrix: Tensor, basis: Tensor, lost: float) -> Split:
    """The split that projects the matrix's short side on a basis [min(a, b), r]."""
    if matrix.shape[0] <= matrix.shape[1]:
        return Split(basis, basis.T @ matrix, max(0.0, lost))
    Q, R = torch.linalg.qr(matrix @ basis)
    return Split(Q, R @ basis.T, max(0.0, lost))


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
