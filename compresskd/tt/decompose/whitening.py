"""TT-SVD that counts what an error costs in a metric, not the error of the weight.

Where one core holds all input modes and one all output modes, the SVD of the whitened weight R_G^T W R_C, divided by
the roots again, is optimal (as in Yuan et al., ASVD, 2023, and Wang et al., SVD-LLM, 2024, for two factors and inputs
alone). Where modes are split over cores, a root is replaced by the Kronecker product of the modes' own roots, which
cores absorb exactly, and least squares in the true metric follows, one core at a time. What is not known to be optimal
is compared with the plain TT-SVD in the true metric, and the best is returned: it is never worse than the plain one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.tt.decompose.cores import round_cores, to_matrix
from compresskd.tt.decompose.least_squares import descend, sweep
from compresskd.tt.decompose.metric import Metric, Root, Weighed, along, root
from compresskd.tt.decompose.tt_svd import Decomposition, tt_svd, working

SWEEPS = 2
CANCELLED = 1e-6
SMALL_SIDE = 256
_OUTPUTS, _INPUTS = 1, 2  # axes of a core


def tt_svd_whitened(
    weighed: Weighed,
    input_dims: Sequence[int],
    output_dims: Sequence[int],
    ranks: Sequence[int],
    *,
    limit: float = math.inf,
) -> Decomposition:
    """Cores of a weight [M, N] at these ranks with the least error in its metric that was found; `error` is that.

    Sweeps of least squares gain less and less: one that would have to gain more than the one before to come down to
    an error of `limit` is left out.
    """
    weight, metric = weighed.weight, weighed.metric
    padded = metric.padded(math.prod(output_dims), math.prod(input_dims))

    def error_of(cores: Sequence[Tensor]) -> float:
        dense = to_matrix([core.double() for core in cores])
        return weighed.error(dense[: weight.shape[0], : weight.shape[1]])

    best = _kronecker(weight, input_dims, output_dims, ranks, padded)
    least = error_of(best)
    is_exact = _is_exact(metric, input_dims, output_dims)
    if not is_exact or len(input_dims) > 2:
        plain = tt_svd(weight, input_dims, output_dims, ranks=ranks).cores
        if (error := error_of(plain)) <= least:
            best, least = plain, error
    for _ in range(0 if is_exact else SWEEPS):
        cores, cost = _improved(weighed, best, padded)
        # a cost that is the difference of much larger ones has few digits
        error = weighed.relative(cost) if cost > CANCELLED * weighed.total else error_of(cores)
        if not error < least:
            break
        best, least, gain = cores, error, least - error
        if least - gain > limit:
            break
    return Decomposition([core.to(weight.dtype).contiguous() for core in best], least)


def round_in_metric(
    cores: Sequence[Tensor],
    metric: Metric | None,
    *,
    ranks: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> list[Tensor]:
    """Fewer ranks for the same matrix [M, N] with the least error in a metric that was found; None: as `round_cores`.

    The optimum where one core holds all input modes and one all output modes. Else the better of what rounds the cores
    with the modes' own roots absorbed, and what rounds them as they are. M and N may be less than what the modes make:
    what is beyond them costs nothing.

    Raises:
        ValueError: neither ranks nor a tolerance, both, or a tolerance in a metric.
    """
    if metric is None:
        return round_cores(cores, ranks=ranks, tolerance=tolerance)
    if ranks is None or tolerance is not None:
        raise ValueError(f"expected ranks and no tolerance in a metric, got {ranks} and {tolerance}")
    input_dims, output_dims = [core.shape[2] for core in cores], [core.shape[1] for core in cores]
    metric = metric.padded(math.prod(output_dims), math.prod(input_dims))
    sides = _sides(metric, input_dims, output_dims)
    exact = [core.detach().double() for core in cores]
    whitened = _applied(exact, sides, Root.times)
    best = _applied(round_cores(whitened, ranks=ranks), sides, Root.divides)
    if not _is_exact(metric, input_dims, output_dims):
        plain, dense = round_cores(exact, ranks=ranks), to_matrix(exact)
        best = min((best, plain), key=lambda found: metric.cost(to_matrix(found) - dense))
    return [core.to(cores[0].dtype).contiguous() for core in best]


def _is_exact(metric: Metric, input_dims: Sequence[int], output_dims: Sequence[int]) -> bool:
    """Whether the Kronecker product of the modes' roots is the metric's own: none is split that has a covariance."""
    sides = ((metric.inputs, input_dims), (metric.outputs, output_dims))
    return not any(covariance is not None and _is_split(dims) for covariance, dims in sides)


def _is_split(dims: Sequence[int]) -> bool:
    return sum(size > 1 for size in dims) > 1


def _kronecker(
    weight: Tensor,
    input_dims: Sequence[int],
    output_dims: Sequence[int],
    ranks: Sequence[int],
    metric: Metric,
) -> list[Tensor]:
    """TT-SVD of the weight times the modes' own roots, then each core divided by its roots."""
    d = len(input_dims)
    padded = _zero_padded(working(weight), (math.prod(output_dims), math.prod(input_dims)))
    tensor = padded.reshape(*output_dims, *input_dims)
    sides = _sides(metric, input_dims, output_dims)
    for side in sides:
        for k, each in side.roots.items():
            tensor = along(tensor, k + (d if side.axis == _INPUTS else 0), each.times)
    cores = tt_svd(tensor.reshape(padded.shape), input_dims, output_dims, ranks=ranks).cores
    return _applied(cores, sides, Root.divides)


@dataclass(frozen=True)
class _Side:
    """The roots of a covariance by the cores whose modes at `axis` they belong to."""

    axis: int
    roots: dict[int, Root]


def _sides(metric: Metric, input_dims: Sequence[int], output_dims: Sequence[int]) -> list[_Side]:
    return [
        _Side(axis, _roots(covariance, dims, whole))
        for axis, covariance, dims, whole in (
            (_INPUTS, metric.inputs, input_dims, lambda: metric.input_root),
            (_OUTPUTS, metric.outputs, output_dims, lambda: metric.output_root),
        )
        if covariance is not None
    ]


def _applied(
    cores: Sequence[Tensor], sides: Sequence[_Side], of: Callable[[Root, Tensor], Tensor]
) -> list[Tensor]:
    """The cores with the roots multiplied into their modes, or divided out of them."""
    cores = list(cores)
    for side in sides:
        for k, each in side.roots.items():
            cores[k] = along(cores[k], side.axis, functools.partial(of, each))
    return cores


def _roots(covariance: Tensor, dims: Sequence[int], whole: Callable[[], Root | None]) -> dict[int, Root]:
    """The roots of the modes by their places; where one large mode holds all, that of the `whole` covariance.

    Up to a scale it is the same; a small one takes no time, and keeps the bits of traces that were recorded.
    """
    known = None if _is_split(dims) or len(covariance) <= SMALL_SIDE else whole()
    if known is not None:
        return {max(range(len(dims)), key=lambda k: dims[k]): known}
    return dict(enumerate(map(root, mode_covariances(covariance, dims))))


def mode_covariances(covariance: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """For each mode [n_k, n_k] (or [n_k], of a diagonal): all other modes traced out, scaled to a mean diagonal of 1.

    The first carries the scale, so that the Kronecker product has the trace of `covariance`.
    """
    parts, size = [], covariance.shape[0]
    for k, n in enumerate(dims):
        left, right = math.prod(dims[:k]), math.prod(dims[k + 1 :])
        if covariance.ndim == 1:
            part = covariance.reshape(left, n, right).sum((0, 2))
            parts.append(part * (n / float(part.sum())))
            continue
        blocks = covariance.reshape(left, n, right, left, n, right)
        part = torch.einsum("anbamb->nm", blocks)
        parts.append(part * (n / float(part.diagonal().sum())))
    total = covariance.sum() if covariance.ndim == 1 else covariance.diagonal().sum()
    parts[0] = parts[0] * (float(total) / size)
    return parts


def _improved(weighed: Weighed, cores: Sequence[Tensor], metric: Metric) -> tuple[list[Tensor], float]:
    """Each core in turn by least squares in a metric of the padded weight; the cost of the outcome or, unknown, 0."""
    cores = [core.double() for core in cores]
    shape = math.prod(core.shape[1] for core in cores), math.prod(core.shape[2] for core in cores)
    if metric.outputs is None and metric.inputs is not None and metric.inputs.ndim > 1:
        cores, change = sweep(_zero_padded(weighed.applied, shape), cores, metric.inputs)
        return cores, 0.0 if change is None else weighed.total + change
    return descend(_zero_padded(weighed.exact, shape), cores, metric), 0.0


def _zero_padded(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    if matrix.shape == shape:
        return matrix
    padded = matrix.new_zeros(shape)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
