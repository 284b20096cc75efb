"""TT-SVD that counts the error of the layer's output, not of its weight.

With C = E[x x^T] [N, N] over the layer's inputs, the mean squared output error of a weight error D [M, N] is
tr(D C D^T) = |D R|^2 for any R with R R^T = C. Where one core holds all input modes, the SVD of W R and a division
by R is optimal (as in Yuan et al., ASVD, 2023, and Wang et al., SVD-LLM, 2024, for two factors). Where the input
is split over cores, R is replaced by the Kronecker product of the modes' own roots, which cores absorb exactly,
and alternating least squares in the true metric follows. Both are compared with the plain TT-SVD in the true
metric, and the best is returned: it is never worse than the plain one.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compresskd.tt.decompose.cores import merge, orthogonalize, to_matrix
from compresskd.tt.decompose.tt_svd import Decomposition, tt_svd, working

RIDGE = 1e-6
MAX_ELEMENTS = 1 << 23
MAX_WORK = 4e9
SWEEPS = 2


def check_covariance(covariance: Tensor, num_inputs: int) -> Tensor:
    """The covariance [N, N], symmetrised, in float64.

    Raises:
        ValueError: not [N, N], not finite, zero, or clearly not positive semidefinite.
    """
    if covariance.shape != (num_inputs, num_inputs):
        raise ValueError(
            f"expected input_covariance [{num_inputs}, {num_inputs}], got {list(covariance.shape)}"
        )
    symmetric = covariance.detach().double()
    if not bool(symmetric.isfinite().all()):
        raise ValueError(
            "expected a finite input_covariance, got NaN or infinity: check the calibration batches"
        )
    symmetric = (symmetric + symmetric.T) / 2
    if float(symmetric.diagonal().min()) < 0 or float(symmetric.diagonal().sum()) == 0:
        raise ValueError(
            "expected input_covariance = E[x x^T], positive semidefinite and not zero; its diagonal says otherwise"
        )
    return symmetric


def root(covariance: Tensor, *, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """R and R^-1 with R R^T = C + ridge tr(C) / N I, symmetric: a covariance without full rank stays usable."""
    size = covariance.shape[0]
    values, vectors = torch.linalg.eigh(covariance)
    floor = ridge * float(covariance.diagonal().sum()) / size
    roots = (values.clamp_min(0.0) + floor).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def output_error(weight: Tensor, approximation: Tensor, covariance: Tensor) -> float:
    """Relative error of the output: the root of tr(D C D^T) / tr(W C W^T), D = W - approximation."""
    weight = weight.double()
    difference = weight - approximation.double()
    total = float(((weight @ covariance) * weight).sum())
    error = float(((difference @ covariance) * difference).sum())
    return math.sqrt(max(0.0, error) / total) if total > 0 else 0.0


def tt_svd_whitened(
    weight: Tensor,
    input_dims: Sequence[int],
    output_dims: Sequence[int],
    ranks: Sequence[int],
    covariance: Tensor,
) -> Decomposition:
    """Cores of `weight` [M, N] at these ranks with the least output error that was found; `error` is that error.

    `covariance` [N, N] is what `check_covariance` returns.
    """
    plain = tt_svd(weight, input_dims, output_dims, ranks=ranks)
    padded = _padded(covariance, math.prod(input_dims))
    whitened = _kronecker(weight, input_dims, output_dims, ranks, padded)
    errors = [_error(weight, cores, covariance) for cores in (plain.cores, whitened)]
    best, least = (plain.cores, errors[0]) if errors[0] <= errors[1] else (whitened, errors[1])
    if sum(size > 1 for size in input_dims) > 1:
        cores = best
        for _ in range(SWEEPS):
            cores = _sweep(weight, cores, padded)
            error = _error(weight, cores, covariance)
            if not error < least:
                break
            best, least = cores, error
    return Decomposition([core.to(weight.dtype).contiguous() for core in best], least)


def _error(weight: Tensor, cores: Sequence[Tensor], covariance: Tensor) -> float:
    dense = to_matrix([core.double() for core in cores])[: weight.shape[0], : weight.shape[1]]
    return output_error(weight, dense, covariance)


def _padded(covariance: Tensor, size: int) -> Tensor:
    padded = covariance.new_zeros(size, size)
    padded[: covariance.shape[0], : covariance.shape[1]] = covariance
    return padded


def _kronecker(
    weight: Tensor,
    input_dims: Sequence[int],
    output_dims: Sequence[int],
    ranks: Sequence[int],
    covariance: Tensor,
) -> list[Tensor]:
    """TT-SVD of the weight times the modes' own roots, then each core divided by its root."""
    weight = working(weight)
    roots = [root(part) for part in mode_covariances(covariance, input_dims)]
    padded = weight.new_zeros(weight.shape[0], math.prod(input_dims))
    padded[:, : weight.shape[1]] = weight
    tensor = padded.reshape(-1, *input_dims)
    for k, (forward, _) in enumerate(roots):
        tensor = (tensor.movedim(k + 1, -1) @ forward.to(tensor)).movedim(-1, k + 1)
    decomposition = tt_svd(tensor.reshape(weight.shape[0], -1), input_dims, output_dims, ranks=ranks)
    return [
        torch.einsum("rmns,nk->rmks", core, inverse.to(core))
        for core, (_, inverse) in zip(decomposition.cores, roots, strict=True)
    ]


def mode_covariances(covariance: Tensor, input_dims: Sequence[int]) -> list[Tensor]:
    """For each mode [n_k, n_k]: the covariance with all other modes traced out, scaled to a mean diagonal of 1.

    The first carries the scale, so that the Kronecker product has the trace of `covariance`.
    """
    parts, size = [], covariance.shape[0]
    for k, n in enumerate(input_dims):
        left, right = math.prod(input_dims[:k]), math.prod(input_dims[k + 1 :])
        blocks = covariance.reshape(left, n, right, left, n, right)
        part = torch.einsum("anbamb->nm", blocks)
        parts.append(part * (n / float(part.diagonal().sum())))
    parts[0] = parts[0] * (float(covariance.diagonal().sum()) / size)
    return parts


def _sweep(weight: Tensor, cores: Sequence[Tensor], covariance: Tensor) -> list[Tensor]:
    """Each core in turn by least squares in the metric of `covariance`; cores too large to solve for stay."""
    cores = [core.double() for core in cores]
    M, N = math.prod(c.shape[1] for c in cores), math.prod(c.shape[2] for c in cores)
    padded = cores[0].new_zeros(M, N)
    padded[: weight.shape[0], : weight.shape[1]] = weight.double()
    target = padded @ covariance
    for k in range(len(cores)):
        cores = orthogonalize(cores, k)
        left = merge(cores[:k])[0] if k else cores[0].new_ones(1, 1, 1)
        right = merge(cores[k + 1 :])[..., 0] if k + 1 < len(cores) else cores[0].new_ones(1, 1, 1)
        if _affordable(cores[k], left, right):
            cores[k] = _solve(cores[k], left, right, target, covariance)
    return cores


def _affordable(core: Tensor, left: Tensor, right: Tensor) -> bool:
    """Whether the normal matrix and what leads to it fit in MAX_ELEMENTS, and its solution in MAX_WORK."""
    r, _, n, s = core.shape
    ml, nl, _ = left.shape
    _, mr, nr = right.shape
    unknowns = r * n * (s if nr > 1 else 1)
    squares = (nl * r, r * n * nr, nr * s if nr > 1 else s, unknowns)
    work = ml * (nl * r) ** 2 + (r * nl * n * nr) ** 2 + mr * (nr * s) ** 2 + unknowns**3
    if nr > 1:
        work += (r * n * nr * s) ** 2
    return max(squares) ** 2 <= MAX_ELEMENTS and work <= MAX_WORK


def _solve(core: Tensor, left: Tensor, right: Tensor, target: Tensor, covariance: Tensor) -> Tensor:
    """The core [r, m, n, s] that minimises |(W - left core right) R|; left [ml, nl, r], right [s, mr, nr].

    The metric does not mix outputs, so each output mode is a problem of its own with one matrix for all:
    A[(r n s), (r' n' s')] = sum left^2 C right^2. Where the right block has no inputs, right^2 factors out.
    """
    r, m, n, s = core.shape
    ml, nl, _ = left.shape
    _, mr, nr = right.shape
    C = covariance.reshape(nl, n * nr, nl, n * nr)
    LL = torch.einsum("mar,mbq->arbq", left, left)
    A = torch.einsum("arbq,axby->rxqy", LL, C)
    T = target.reshape(ml, m, mr, nl, n, nr)
    B = torch.einsum("mar,mpwanx->pwrnx", left, T)
    B = torch.einsum("swx,pwrnx->prns", right, B)
    if nr == 1:
        RR = right[:, :, 0] @ right[:, :, 0].T
        A = _ridged(A.reshape(r * n, r * n))
        B = torch.linalg.solve(RR, B.reshape(-1, s).T).T.reshape(m, r * n, s)
        X = torch.linalg.solve(A, B)
    else:
        A = A.reshape(r, n, nr, r, n, nr)
        RR = torch.einsum("swx,twy->sxty", right, right)
        A = torch.einsum("rnxqmy,sxty->rnsqmt", A, RR).reshape(r * n * s, r * n * s)
        X = torch.linalg.solve(_ridged(A), B.reshape(m, -1).T).T
    return X.reshape(m, r, n, s).transpose(0, 1)


def _ridged(A: Tensor) -> Tensor:
    """A with its diagonal raised by a little of its mean, so that it can be solved with."""
    ridge = 1e-9 * float(A.diagonal().sum()) / A.shape[0]
    return A + ridge * torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
