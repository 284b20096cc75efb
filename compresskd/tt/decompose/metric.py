"""What an error of a weight costs: the metric in which a decomposition is the best one.

With C = E[x x^T] [N, N] over the layer's inputs, a weight error D [M, N] changes the layer's output by the mean
squared norm tr(D C D^T). With G = E[g g^T] [M, M] over the gradients of a loss by the layer's outputs as well, the
cost is tr(G D C D^T): the second-order change of the loss where its curvature at the layer is G (x) C, the
Kronecker-factored Fisher matrix (Martens and Grosse 2015, arXiv:1503.05671, equation 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

RIDGE = 1e-6
PANEL = 192
SYMMETRIC_SIDE = 512  # above, a root by Cholesky's method takes a tenth of the time


@dataclass(frozen=True)
class Metric:
    """tr(G D C D^T) for an error D [M, N]; of G and C the one that is None is the identity.

    Attributes:
        inputs: C [N, N], or [N], its diagonal, in float64.
        outputs: G [M, M], or [M], its diagonal, in float64.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    def applied(self, error: Tensor) -> Tensor:
        """G D C of an error D [M, N]."""
        error = error if self.inputs is None else _times(error, self.inputs)
        return error if self.outputs is None else _times(error.T, self.outputs).T

    def cost(self, error: Tensor) -> float:
        """tr(G D C D^T) of an error D [M, N] in float64."""
        if self.outputs is None and self.inputs is not None and self.inputs.ndim > 1:
            return _quadratic(error, self.inputs)
        right = error if self.inputs is None else _times(error, self.inputs)
        left = error if self.outputs is None else _times(error.T, self.outputs).T
        return float((right * left).sum())

    def error(self, weight: Tensor, approximation: Tensor) -> float:
        """Relative error: the root of cost(weight - approximation) / cost(weight)."""
        return Weighed(weight, self).error(approximation)

    def whitened(self, weight: Tensor) -> Tensor:
        """R_G^T W R_C, whose squared Frobenius norm is the cost of W; in the dtype of `weight`."""
        if self.input_root is not None:
            weight = self.input_root.times(weight)
        if self.output_root is not None:
            weight = self.output_root.times(weight.T).T
        return weight

    @cached_property
    def input_root(self) -> "Root | None":
        """R_C."""
        return None if self.inputs is None else root(self.inputs)

    @cached_property
    def output_root(self) -> "Root | None":
        """R_G."""
        return None if self.outputs is None else root(self.outputs)

    def padded(self, num_outputs: int, num_inputs: int) -> "Metric":
        """Of errors with more rows and columns, which cost nothing."""
        inputs, outputs = _padded(self.inputs, num_inputs), _padded(self.outputs, num_outputs)
        return self if inputs is self.inputs and outputs is self.outputs else Metric(inputs, outputs)


@dataclass(frozen=True)
class Weighed:
    """A weight [M, N] with the metric of its errors, and what all its decompositions share."""

    weight: Tensor
    metric: Metric

    @cached_property
    def exact(self) -> Tensor:
        """The weight in float64."""
        return self.weight.double()

    @cached_property
    def applied(self) -> Tensor:
        """G W C."""
        return self.metric.applied(self.exact)

    @cached_property
    def total(self) -> float:
        """The cost of the weight itself."""
        return float((self.applied * self.exact).sum())

    def error(self, approximation: Tensor) -> float:
        """Relative error: the root of cost(weight - approximation) / cost(weight)."""
        return self.relative(self.metric.cost(self.exact - approximation.double()))

    def relative(self, cost: float) -> float:
        """The relative error of an approximation whose difference to the weight has this cost."""
        return math.sqrt(max(0.0, cost) / self.total) if self.total > 0 else 0.0


@dataclass(frozen=True)
class Root:
    """R [N, N], or the vector [N] of a diagonal one, with R R^T = C + ridge tr(C) / N I.

    Attributes:
        forward: R.
        inverse: R^-1; None where R is lower triangular, with which one solves.
    """

    forward: Tensor
    inverse: Tensor | None

    def times(self, x: Tensor) -> Tensor:
        """x R of x [..., N], in its dtype."""
        return _times(x, self.forward.to(x))

    def divides(self, x: Tensor) -> Tensor:
        """x R^-1 of x [..., N], in its dtype."""
        if self.inverse is not None:
            return _times(x, self.inverse.to(x))
        rows = x.reshape(-1, x.shape[-1]).to(self.forward)
        solved = torch.linalg.solve_triangular(self.forward, rows, upper=False, left=False)
        return solved.to(x).reshape(x.shape)


def check_covariance(covariance: Tensor, size: int, name: str = "input_covariance") -> Tensor:
    """The covariance [N, N], symmetrised, or its diagonal [N], in float64.

    Raises:
        ValueError: another shape, not finite, zero, or clearly not positive semidefinite.
    """
    if covariance.shape not in ((size, size), (size,)):
        raise ValueError(f"expected {name} [{size}, {size}], got {list(covariance.shape)}")
    found = covariance.detach().double()
    if not bool(found.isfinite().all()):
        raise ValueError(f"expected a finite {name}, got NaN or infinity: check the calibration batches")
    if found.ndim > 1:
        found = (found + found.T) / 2
    diagonal = _diagonal(found)
    if float(diagonal.min()) < 0 or float(diagonal.sum()) == 0:
        raise ValueError(
            f"expected {name} = E[x x^T], positive semidefinite and not zero; its diagonal says otherwise"
        )
    return found


def root(covariance: Tensor, *, ridge: float = RIDGE) -> Root:
    """R with R R^T = C + ridge tr(C) / N I: a covariance without full rank stays usable."""
    size = covariance.shape[0]
    floor = ridge * float(_diagonal(covariance).sum()) / size
    if covariance.ndim == 1:
        roots = (covariance.clamp_min(0.0) + floor).sqrt()
        return Root(roots, 1 / roots)
    if size > SYMMETRIC_SIDE:
        raised = covariance.clone()
        raised.diagonal().add_(floor)
        lower, failed = torch.linalg.cholesky_ex(raised)
        if not bool(failed):
            return Root(lower, None)
    values, vectors = torch.linalg.eigh(covariance)
    roots = (values.clamp_min(0.0) + floor).sqrt()
    return Root((vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T)


def along(tensor: Tensor, dim: int, applied: Callable[[Tensor], Tensor]) -> Tensor:
    """The tensor with the fibres along `dim` replaced by what is `applied` to them, as rows."""
    return applied(tensor.movedim(dim, -1)).movedim(-1, dim)


def _quadratic(error: Tensor, covariance: Tensor) -> float:
    """tr(D C D^T), by products with one half of a symmetric C."""
    found = 0.0
    for start in range(0, error.shape[1], PANEL):
        part, until = error[:, start : start + PANEL], min(start + PANEL, error.shape[1])
        product = error[:, :start] @ covariance[:start, start:until] * 2
        found += float((part * product.addmm_(part, covariance[start:until, start:until])).sum())
    return found


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    return x @ matrix if matrix.ndim > 1 else x * matrix


def _diagonal(covariance: Tensor) -> Tensor:
    return covariance.diagonal() if covariance.ndim > 1 else covariance


def _padded(covariance: Tensor | None, size: int) -> Tensor | None:
    if covariance is None or len(covariance) == size:
        return covariance
    padded = covariance.new_zeros((size,) * covariance.ndim)
    padded[(slice(len(covariance)),) * covariance.ndim] = covariance
    return padded
