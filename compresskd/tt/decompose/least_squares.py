"""Least squares for the cores of a tensor train, one core at a time, in the metric of a weight's errors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compresskd.tt.decompose.cores import merge, orthogonalize
from compresskd.tt.decompose.gram import gram
from compresskd.tt.decompose.metric import Metric

MAX_ELEMENTS = 1 << 23
MAX_WORK = 4e9
DESCENTS = 12  # steps of conjugate gradients for one core
MAX_DESCENT = 1e11  # multiplications of all of them
SMALL = 256  # unknowns for which elimination takes no time; it keeps the bits of traces that were recorded


def sweep(applied: Tensor, cores: Sequence[Tensor], covariance: Tensor) -> tuple[list[Tensor], float | None]:
    """Each core in turn by least squares in the metric of the inputs; cores too large to solve for stay.

    Args:
        applied: the target times the covariance, W C [M, N] in float64, padded to the products of the modes.
        cores: where to start, in float64.
        covariance: C [N, N].

    Returns:
        The cores, and by how much their cost is above that of the target itself; None where that is not known.
    """
    cores, change = list(cores), None
    for k in range(len(cores)):
        cores, left, right = _around(cores, k)
        change = None
        if _affordable(cores[k], left, right):
            cores[k], change = _solve(cores[k], left, right, applied, covariance)
    return cores, change


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


def _solve(
    core: Tensor, left: Tensor, right: Tensor, applied: Tensor, covariance: Tensor
) -> tuple[Tensor, float]:
    """The core [r, m, n, s] that minimises |(W - left core right) R|; left [ml, nl, r], right [s, mr, nr].

    The metric does not mix outputs, so each output mode is a problem of its own with one matrix for all:
    A[(r n s), (r' n' s')] = sum left^2 C right^2. Where the right block has no inputs, right^2 factors out.
    With the core comes its change of the cost, x^T A x - 2 x^T b.
    """
    r, m, n, s = core.shape
    ml, nl, _ = left.shape
    _, mr, nr = right.shape
    LL = torch.einsum("mar,mbq->arbq", left, left)
    RR = gram(right.transpose(1, 2).reshape(s * nr, mr))
    A = torch.einsum("arbq,axby->rxqy", LL, covariance.reshape(nl, n * nr, nl, n * nr))
    B = torch.einsum("mar,mpwanx->pwrnx", left, applied.reshape(ml, m, mr, nl, n, nr))
    B = torch.einsum("swx,pwrnx->rnsp", right, B)
    if nr == 1:
        # right^2 [s, t] stands beside A: first its inverse, at the end itself
        rows = torch.linalg.solve(RR, B.transpose(0, 2).reshape(s, -1)).reshape(s, n, r, m).transpose(0, 2)
        X, product = _solution(A.reshape(r * n, r * n), rows.reshape(r * n, s * m))
        product = torch.einsum("st,untm->unsm", RR, product.reshape(r, n, s, m))
    else:
        A = _contracted(A.reshape(r * n, nr, r * n, nr), RR.reshape(s, nr, s, nr), right)
        X, product = _solution(A, B.reshape(-1, m))
    X = X.reshape(B.shape)
    change = float((X * (product.reshape(B.shape) - 2 * B)).sum())
    return X.permute(0, 3, 1, 2).contiguous(), change


def _contracted(A: Tensor, RR: Tensor, right: Tensor) -> Tensor:
    """A [u, x, u', y] with right^2 [s, x, t, y] over x and y: [(u s), (u' t)]."""
    u, s = A.shape[0], RR.shape[0]
    if right.shape[1] >= s:
        return torch.einsum("uxvy,sxty->usvt", A, RR).reshape(u * s, u * s)
    half = torch.einsum("uxvy,swx->usvyw", A, right)
    return torch.einsum("usvyw,twy->usvt", half, right).reshape(u * s, u * s)


def _solution(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """X [n, k] of A X = B, the diagonal of A [n, n] raised by a little of its mean to be solved with, and A X."""
    ridge = 1e-9 * float(A.diagonal().sum()) / A.shape[0]
    A.diagonal().add_(ridge)
    lower = _lower(A) if len(A) > SMALL else None
    X = torch.linalg.solve(A, B) if lower is None else torch.cholesky_solve(B, lower)
    return X, B - ridge * X


def _lower(A: Tensor) -> Tensor | None:
    """Cholesky's factor: half the work of elimination, and as exact; None where A is not positive definite so."""
    lower, failed = torch.linalg.cholesky_ex(A)
    return None if bool(failed) else lower
