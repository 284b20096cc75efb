"""Inner products and environments of tensor trains, without the dense matrix.

Shape legend: core k is [r_{k-1}, m_k, n_k, r_k]; m output modes, n input modes. An environment [r, r'] is
all that lies on one side of a cut, contracted: of the train `a` on the first axis, of the train `b` on the
second.

Inner products may be weighted by an input covariance that is separable over the modes, C = C_1 x ... x C_d:
then <a, b> = trace(W_a C W_b^T). `weights` are the d factors [n_k, n_k], or None for the plain product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Weights = Sequence[Tensor] | None


def inner_product(a: Sequence[Tensor], b: Sequence[Tensor], weights: Weights = None) -> Tensor:
    """<a, b>, a scalar; O(m n r^3) a core."""
    return torch.trace(left_environments(a, b, weights)[-1])


def left_environments(a: Sequence[Tensor], b: Sequence[Tensor], weights: Weights = None) -> list[Tensor]:
    """The d + 1 environments of everything to the left of core 0, core 1, ... and of the whole train."""
    environments = [torch.eye(a[0].shape[0], dtype=a[0].dtype, device=a[0].device)]
    for k in range(len(a)):
        weighted = weigh(b[k], None if weights is None else weights[k])
        carried = torch.einsum("ab,bmnc->amnc", environments[-1], weighted)
        environments.append(torch.einsum("amnb,amnc->bc", a[k], carried))
    return environments


def right_environments(a: Sequence[Tensor], b: Sequence[Tensor], weights: Weights = None) -> list[Tensor]:
    """The d + 1 environments of everything from core 0, core 1, ... on, and of nothing."""
    environments = [torch.eye(a[-1].shape[3], dtype=a[0].dtype, device=a[0].device)]
    for k in reversed(range(len(a))):
        weighted = weigh(b[k], None if weights is None else weights[k])
        carried = torch.einsum("amnb,cb->amnc", weighted, environments[-1])
        environments.append(torch.einsum("amnc,bmnc->ab", a[k], carried))
    return environments[::-1]


def relative_error(a: Sequence[Tensor], b: Sequence[Tensor], weights: Weights = None) -> float:
    """|W_a - W_b| / |W_a|, computed in float64. Its resolution is about 1e-8: squares are subtracted."""
    a, b = [core.double() for core in a], [core.double() for core in b]
    weights = None if weights is None else [weight.double() for weight in weights]
    norm = inner_product(a, a, weights)
    square = norm - 2 * inner_product(a, b, weights) + inner_product(b, b, weights)
    return float((square.clamp(min=0) / norm).sqrt()) if norm > 0 else 0.0


def weigh(core: Tensor, weight: Tensor | None) -> Tensor:
    """The core with its input mode multiplied by a weight [n_k, n_k]."""
    return core if weight is None else torch.einsum("amnb,nk->amkb", core, weight)


def separable_covariance(covariance: Tensor, input_modes: Sequence[int], num_sweeps: int = 5) -> list[Tensor]:
    """The factors [n_k, n_k] whose Kronecker product is nearest to a covariance [N, N], N = n_1 ... n_d.

    The best rank-one approximation of the rearranged tensor by alternating contractions (Van Loan &
    Pitsianis 1993); from the identity, every factor stays positive semi-definite. A covariance of fewer
    inputs than the product of the modes is padded by zeros, as the layer pads its input. Factors are
    normalised to a mean diagonal of 1 and get 1% of the identity, so that no input is ignored altogether.

    Raises:
        ValueError: the covariance is not square, or larger than the modes allow.
    """
    modes = tuple(input_modes)
    size = int(torch.tensor(modes).prod())
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1] or len(covariance) > size:
        raise ValueError(
            f"input_covariance: expected a square matrix of at most {size} inputs (modes {modes}), "
            f"got the shape {tuple(covariance.shape)}"
        )
    missing = size - len(covariance)
    padded = torch.nn.functional.pad(covariance.double(), (0, missing, 0, missing)).reshape(modes + modes)
    factors = [torch.eye(n, dtype=torch.float64) for n in modes]
    for _ in range(num_sweeps):
        for k in range(len(modes)):
            factors[k] = _contract_others(padded, factors, k)
    return [factor + 0.01 * torch.eye(len(factor), dtype=torch.float64) for factor in factors]


def _contract_others(covariance: Tensor, factors: list[Tensor], k: int) -> Tensor:
    """The covariance [n_1, ..., n_d, n_1, ..., n_d] contracted with all factors but the k-th, symmetric, scaled."""
    result = covariance.movedim((k, covariance.dim() // 2 + k), (0, 1))
    for factor in reversed([factor for j, factor in enumerate(factors) if j != k]):
        last = (result.dim() - 2) // 2 + 1  # position of the row mode that belongs to the last column mode
        result = torch.einsum("...ab,ab->...", result.movedim(last, -2), factor)
    result = (result + result.T) / 2
    return result / result.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
