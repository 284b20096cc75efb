"""TT-SVD of a matrix [M, N] in given modes, at given ranks or to a tolerance.

I. V. Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33 (2011), algorithm 1. The left factors are
orthonormal, so the squared error is exactly the sum of what the successive truncations leave out, which is never
more than the sum of the squared singular values that the unfoldings of the matrix itself lose (theorem 2.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.decompose.cores import clip_ranks, to_matrix
from compresskd.tt.decompose.svd import split, squared_norm

FLOAT64_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Decomposition:
    """Cores [r_{k-1}, m_k, n_k, r_k] and their relative Frobenius error, over the entries that are not padding."""

    cores: list[Tensor]
    error: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d - 1 TT-ranks."""
        return tuple(core.shape[0] for core in self.cores[1:])

    @property
    def num_parameters(self) -> int:
        """Of all cores."""
        return sum(core.numel() for core in self.cores)


def tt_svd(
    weight: Tensor,
    input_dims: Sequence[int],
    output_dims: Sequence[int],
    *,
    ranks: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> Decomposition:
    """Cores of `weight` [M, N], padded with zeros to the products of the modes, in its dtype.

    `ranks` caps the d - 1 TT-ranks; `tolerance` bounds the relative error, and what a cut leaves unused of it passes
    to the cuts after it. Without either, all ranks are full and the cores exact.
    """
    check_modes(weight.shape[1], weight.shape[0], input_dims, output_dims)
    d, total = len(input_dims), squared_norm(weight.detach())
    caps = None if ranks is None else clip_ranks(ranks, input_dims, output_dims)
    allowed = (tolerance or 0.0) ** 2 * total
    eps = torch.finfo(weight.dtype).eps
    rest, discarded = interleave(working(weight), input_dims, output_dims).reshape(1, -1), 0.0
    cores = []
    for k in range(d - 1):
        part = split(
            rest.reshape(rest.shape[0] * output_dims[k] * input_dims[k], -1),
            rank=None if caps is None else caps[k],
            discard=allowed / (d - 1 - k),
            eps=eps,
            total=max(0.0, total - discarded),
        )
        cores.append(part.left.reshape(-1, output_dims[k], input_dims[k], part.left.shape[1]))
        rest, discarded, allowed = part.right, discarded + part.discarded, max(0.0, allowed - part.discarded)
    cores.append(rest.reshape(-1, output_dims[-1], input_dims[-1], 1))
    error = math.sqrt(discarded / total) if total > 0 else 0.0
    if error and (math.prod(output_dims), math.prod(input_dims)) != tuple(weight.shape):
        # what was discarded counts the padding, too, whose values do not matter
        approximation = to_matrix(cores)[: weight.shape[0], : weight.shape[1]]
        error = math.sqrt(squared_norm(working(weight) - approximation) / total)
    return Decomposition([core.to(weight.dtype).contiguous() for core in cores], error)


def check_modes(
    num_inputs: int, num_outputs: int, input_dims: Sequence[int], output_dims: Sequence[int]
) -> None:
    """Raise ValueError where the modes cannot hold a matrix [num_outputs, num_inputs]."""
    if len(input_dims) != len(output_dims) or not input_dims:
        raise ValueError(
            f"expected as many input modes as output modes, at least one; got {tuple(input_dims)} and "
            f"{tuple(output_dims)}"
        )
    for name, dims, size in (("input", input_dims, num_inputs), ("output", output_dims, num_outputs)):
        if min(dims) < 1 or math.prod(dims) < size:
            raise ValueError(
                f"expected {name} modes of at least 1 whose product is at least {size}; got {tuple(dims)}, "
                f"product {math.prod(dims)}"
            )


def working(weight: Tensor) -> Tensor:
    """The weight in the dtype of computation: float64 where that is asked or cheap, else float32."""
    weight = weight.detach()
    cheap = weight.numel() <= FLOAT64_ELEMENTS
    return weight.double() if cheap or weight.dtype == torch.float64 else weight.float()


def interleave(weight: Tensor, input_dims: Sequence[int], output_dims: Sequence[int]) -> Tensor:
    """[M, N] to [m_1, n_1, m_2, n_2, ...], padded with zeros."""
    d = len(input_dims)
    pad = (0, math.prod(input_dims) - weight.shape[1], 0, math.prod(output_dims) - weight.shape[0])
    padded = F.pad(weight, pad) if any(pad) else weight
    tensor = padded.reshape(*output_dims, *input_dims)
    return tensor.permute([axis for k in range(d) for axis in (k, d + k)])
