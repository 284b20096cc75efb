"""Algebra on tensor-train cores: sizes, reconstruction, gauges and rounding, without the dense matrix.

Shape legend: d cores; core k is [r_{k-1}, m_k, n_k, r_k] with r_0 = r_d = 1; M = m_1...m_d outputs, N =
n_1...n_d inputs. `ranks` always means the d - 1 TT-ranks between cores (r_1, ..., r_{d-1}).

I. V. Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33 (2011): algorithm 2 is rounding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compresskd.tt.decompose.svd import split, squared_norm


def max_ranks(input_dims: Sequence[int], output_dims: Sequence[int]) -> tuple[int, ...]:
    """The d - 1 largest useful ranks: min(m_1 n_1...m_k n_k, m_{k+1} n_{k+1}...m_d n_d) at cut k."""
    sizes = [m * n for m, n in zip(output_dims, input_dims, strict=True)]
    return tuple(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))


def clip_ranks(
    ranks: Sequence[int], input_dims: Sequence[int], output_dims: Sequence[int]
) -> tuple[int, ...]:
    """Ranks no larger than what the unfoldings and the neighbouring ranks support: r_k <= r_{k-1} m_k n_k."""
    clipped = [min(rank, most) for rank, most in zip(ranks, max_ranks(input_dims, output_dims), strict=True)]
    sizes = [m * n for m, n in zip(output_dims, input_dims, strict=True)]
    for k in range(len(clipped)):
        clipped[k] = min(clipped[k], (clipped[k - 1] if k else 1) * sizes[k])
    for k in reversed(range(len(clipped))):
        clipped[k] = min(clipped[k], (clipped[k + 1] if k + 1 < len(clipped) else 1) * sizes[k + 1])
    return tuple(clipped)


def core_shapes(
    input_dims: Sequence[int], output_dims: Sequence[int], ranks: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """[r_{k-1}, m_k, n_k, r_k] of each of the d cores."""
    all_ranks = (1, *ranks, 1)
    return [
        (all_ranks[k], m, n, all_ranks[k + 1])
        for k, (m, n) in enumerate(zip(output_dims, input_dims, strict=True))
    ]


def num_parameters(input_dims: Sequence[int], output_dims: Sequence[int], ranks: Sequence[int]) -> int:
    """Parameters of all cores together."""
    return sum(math.prod(shape) for shape in core_shapes(input_dims, output_dims, ranks))


def merge(cores: Sequence[Tensor]) -> Tensor:
    """The product of neighbouring cores as one core [r_left, m_left...m_right, n_left...n_right, r_right]."""
    merged = cores[0]
    for core in cores[1:]:
        left, m, n, rank = merged.shape
        _, m_k, n_k, right = core.shape
        product = merged.reshape(-1, rank) @ core.reshape(rank, -1)
        product = product.view(left, m, n, m_k, n_k, right).transpose(2, 3)
        merged = product.reshape(left, m * m_k, n * n_k, right)
    return merged


def to_matrix(cores: Sequence[Tensor]) -> Tensor:
    """The dense matrix [M, N] that the cores stand for."""
    merged = merge(cores)
    return merged.reshape(merged.shape[1], merged.shape[2])


def orthogonalize(cores: Sequence[Tensor], center: int) -> list[Tensor]:
    """The same matrix with cores left of `center` left-orthogonal and those right of it right-orthogonal.

    Left-orthogonal: the columns of core.reshape(r_{k-1} m_k n_k, r_k) are orthonormal. TT-ranks that are larger
    than their neighbours support shrink; the rest keep their size.
    """
    result = list(cores)
    for k in range(center):
        r, m, n, s = result[k].shape
        Q, R = torch.linalg.qr(result[k].reshape(r * m * n, s))
        result[k] = Q.reshape(r, m, n, -1)
        result[k + 1] = torch.einsum("ab,bmns->amns", R, result[k + 1])
    for k in range(len(result) - 1, center, -1):
        r, m, n, s = result[k].shape
        Q, R = torch.linalg.qr(result[k].reshape(r, m * n * s).T)
        result[k] = Q.T.reshape(-1, m, n, s)
        result[k - 1] = torch.einsum("amnb,cb->amnc", result[k - 1], R)
    return [core.contiguous() for core in result]


def round_cores(
    cores: Sequence[Tensor], *, ranks: Sequence[int] | None = None, tolerance: float | None = None
) -> list[Tensor]:
    """Fewer ranks for the same matrix: a QR sweep, then an SVD sweep (Oseledets 2011, algorithm 2), in float64.

    `ranks` caps each of the d - 1 TT-ranks; `tolerance` bounds the Frobenius error relative to the matrix, and the
    part of it that a cut leaves unused passes to the cuts after it. The dense matrix is never formed.
    """
    if (ranks is None) == (tolerance is None):
        raise ValueError(f"expected either ranks or tolerance, got ranks={ranks}, tolerance={tolerance}")
    d, dtype = len(cores), cores[0].dtype
    if ranks is not None and len(ranks) != d - 1:
        raise ValueError(f"expected {d - 1} ranks for {d} cores, got {len(ranks)}: {tuple(ranks)}")
    result = orthogonalize([core.detach().double() for core in cores], 0)
    allowed = (tolerance or 0.0) ** 2 * squared_norm(result[0])
    for k in range(d - 1):
        r, m, n, s = result[k].shape
        part = split(
            result[k].reshape(r * m * n, s),
            rank=None if ranks is None else ranks[k],
            discard=allowed / (d - 1 - k),
            eps=torch.finfo(dtype).eps,
        )
        allowed = max(0.0, allowed - part.discarded)
        result[k] = part.left.reshape(r, m, n, -1)
        result[k + 1] = torch.einsum("ab,bmns->amns", part.right, result[k + 1])
    return [core.to(dtype).contiguous() for core in result]


def balance(cores: Sequence[Tensor], *, floor: float = 1e-4) -> list[Tensor]:
    """The same matrix in the gauge where each cut's singular values are shared evenly by both its sides.

    With left-orthogonal cores A_k and the singular values L_k of cut k, the balanced cores are
    L_{k-1}^{-1/2} A_k L_k^{1/2} (Vidal, PRL 91, 147902 (2003), eq. 3, with the roots absorbed). Values below
    `floor` of a cut's largest scale as if they were there, so that no core entry grows without bound.
    """
    d, dtype = len(cores), cores[0].dtype
    result = orthogonalize([core.detach().double() for core in cores], 0)
    before = torch.ones(1, dtype=torch.float64, device=cores[0].device)
    for k in range(d - 1):
        r, m, n, s = result[k].shape
        U, S, Vh = torch.linalg.svd(result[k].reshape(r * m * n, s), full_matrices=False)
        result[k + 1] = torch.einsum("ab,bmns->amns", S[:, None] * Vh, result[k + 1])
        root = S.clamp_min(float(S[0]) * floor).sqrt() if float(S[0]) > 0 else torch.ones_like(S)
        result[k] = U.reshape(r, m, n, -1) * root / before.view(-1, 1, 1, 1)
        before = root
    result[-1] = result[-1] / before.view(-1, 1, 1, 1)
    return [core.to(dtype).contiguous() for core in result]
