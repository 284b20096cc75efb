"""Least squares for the cores of a tensor train, one core at a time, in the metric of a weight's errors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compresskd.tt.decompose.cores import merge, orthogonalize
from compresskd.tt.decompose.metric import Metric

MAX_ELEMENTS = 1 << 23
MAX_WORK = 4e9
DESCENTS = 12  # steps of conjugate gradients for one core
MAX_DESCENT = 1e11  # multiplications of all of them


def sweep(target: Tensor, cores: Sequence[Tensor], covariance: Tensor) -> list[Tensor]:
    """Each core in turn by least squares in the metric of the inputs; cores too large to solve for stay.

    Args:
        target: [M, N] in float64, padded to the products of the modes.
        cores: where to start, in float64.
        covariance: [N, N].
    """
    cores = list(cores)
    target = target @ covariance
    for k in range(len(cores)):
        cores, left, right = _around(cores, k)
        if _affordable(cores[k], left, right):
            cores[k] = _solve(cores[k], left, right, target, covariance)
    return cores


def descend(target: Tensor, cores: Sequence[Tensor], metric: Metric) -> list[Tensor]:
    """The same in a metric of outputs and inputs, by conjugate gradients: the cost never rises.

    With the cores on both sides orthogonal, the normal equations of one core are as well-conditioned as the metric.
    """
    cores = list(cores)
    M, N = target.shape
    if DESCENTS * len(cores) * M * N * (M + N) > MAX_DESCENT:
        return cores
    for k in range(len(cores)):
        cores, left, right = _around(cores, k)
        cores[k] = _conjugate_gradients(cores[k], left, right, target, metric)
    return cores


def _around(cores: Sequence[Tensor], k: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """The cores with the centre of orthogonality at core k, and the merged ones left [ml, nl, r] and right of it."""
    moved = orthogonalize(cores, k)
    left = merge(moved[:k])[0] if k else moved[0].new_ones(1, 1, 1)
    right = merge(moved[k + 1 :])[..., 0] if k + 1 < len(moved) else moved[0].new_ones(1, 1, 1)
    return moved, left, right


def _conjugate_gradients(core: Tensor, left: Tensor, right: Tensor, target: Tensor, metric: Metric) -> Tensor:
    """Steps towards the core [r, m, n, s] of least cost of target - left core right (Hestenes and Stiefel 1952)."""
    shape = (left.shape[0], core.shape[1], right.shape[1], left.shape[1], core.shape[2], right.shape[2])

    def product(x: Tensor) -> Tensor:
        return torch.einsum("acr,rmns,sbd->ambcnd", left, x, right).reshape(target.shape)

    def gradient(error: Tensor) -> Tensor:
        return torch.einsum("acr,ambcnd,sbd->rmns", left, metric.applied(error).reshape(shape), right)

    residual = gradient(target - product(core))
    direction, norm = residual, residual.square().sum()
    for _ in range(DESCENTS):
        if not float(norm) > 0:
            break
        moved = gradient(product(direction))
        step = norm / (direction * moved).sum()
        core, residual = core + step * direction, residual - step * moved
        before, norm = norm, residual.square().sum()
        direction = residual + (norm / before) * direction
    return core


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
