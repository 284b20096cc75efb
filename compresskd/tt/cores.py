"""Algebra on tensor-train cores: sizes, reconstruction, gauges and rounding, without the dense matrix.

Shape legend: d cores; core k is [r_{k-1}, m_k, n_k, r_k] with r_0 = r_d = 1; M = m_1...m_d outputs, N =
n_1...n_d inputs. `ranks` always means the d - 1 inner bonds (r_1, ..., r_{d-1}).

I. V. Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33 (2011): algorithm 2 is rounding.
"""

import math
from collections.abc import Sequence

from torch import Tensor


def max_ranks(input_dims: Sequence[int], output_dims: Sequence[int]) -> tuple[int, ...]:
    """The d - 1 largest useful ranks: min(m_1 n_1...m_k n_k, m_{k+1} n_{k+1}...m_d n_d) at bond k."""
    sizes = [m * n for m, n in zip(output_dims, input_dims, strict=True)]
    return tuple(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))


def clip_ranks(
    ranks: Sequence[int], input_dims: Sequence[int], output_dims: Sequence[int]
) -> tuple[int, ...]:
    """Ranks no larger than what the unfoldings and the neighbouring bonds support: r_k <= r_{k-1} m_k n_k."""
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
    bonds = (1, *ranks, 1)
    return [
        (bonds[k], m, n, bonds[k + 1]) for k, (m, n) in enumerate(zip(output_dims, input_dims, strict=True))
    ]


def num_parameters(input_dims: Sequence[int], output_dims: Sequence[int], ranks: Sequence[int]) -> int:
    """Parameters of all cores together."""
    return sum(math.prod(shape) for shape in core_shapes(input_dims, output_dims, ranks))


def merge(cores: Sequence[Tensor]) -> Tensor:
    """The product of neighbouring cores as one core [r_left, m_left...m_right, n_left...n_right, r_right]."""
    merged = cores[0]
    for core in cores[1:]:
        left, m, n, bond = merged.shape
        _, m_k, n_k, right = core.shape
        product = merged.reshape(-1, bond) @ core.reshape(bond, -1)
        product = product.view(left, m, n, m_k, n_k, right).transpose(2, 3)
        merged = product.reshape(left, m * m_k, n * n_k, right)
    return merged


def to_matrix(cores: Sequence[Tensor]) -> Tensor:
    """The dense matrix [M, N] that the cores stand for."""
    merged = merge(cores)
    return merged.reshape(merged.shape[1], merged.shape[2])
