"""What an error of a weight costs: the metric in which a decomposition is the best one.

With C = E[x x^T] [N, N] over the layer's inputs, a weight error D [M, N] changes the layer's output by the mean
squared norm tr(D C D^T). With G = E[g g^T] [M, M] over the gradients of a loss by the layer's outputs as well, the
cost is tr(G D C D^T): the second-order change of the loss where its curvature at the layer is G (x) C, the
Kronecker-factored Fisher matrix (Martens and Grosse 2015, arXiv:1503.05671, equation 1).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

RIDGE = 1e-6
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
        right = error if self.inputs is None else _times(error, self.inputs)
        left = error if self.outputs is None else _times(error.T, self.outputs).T
        return float((right * left).sum())

    def error(self, weight: Tensor, approximation: Tensor, *, total: float | None = None) -> float:
        """Relative error: the root of cost(weight - approximation) / cost(weight); `total` is the latter if known."""
        weight = weight.double()
        difference = weight - approximation.double()
        total = self.cost(weight) if total is None else total
        return math.sqrt(max(0.0, self.cost(difference)) / total) if total > 0 else 0.0

    def whitened(self, weight: Tensor) -> Tensor:
        """R_G^T W R_C, whose squared Frobenius norm is the cost of W; in the dtype of `weight`."""
        if self.input_root is not None:
            weight = _times(weight, self.input_root[0].to(weight))
        if self.output_root is not None:
            weight = _times(weight.T, self.output_root[0].to(weight)).T
        return weight

    @cached_property
    def input_root(self) -> tuple[Tensor, Tensor] | None:
        """R_C and its inverse."""
        return None if self.inputs is None else root(self.inputs)

    @cached_property
    def output_root(self) -> tuple[Tensor, Tensor] | None:
        """R_G and its inverse."""
        return None if self.outputs is None else root(self.outputs)

    def padded(self, num_outputs: int, num_inputs: int) -> "Metric":
        """Of errors with more rows and columns, which cost nothing."""
        return Metric(_padded(self.inputs, num_inputs), _padded(self.outputs, num_outputs))


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


def root(covariance: Tensor, *, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """R and R^-1 with R R^T = C + ridge tr(C) / N I: a covariance without full rank stays usable.

    Both are vectors [N] where `covariance` is a diagonal [N].
    """
    size = covariance.shape[0]
    floor = ridge * float(_diagonal(covariance).sum()) / size
    if covariance.ndim == 1:
        roots = (covariance.clamp_min(0.0) + floor).sqrt()
        return roots, 1 / roots
    if size > SYMMETRIC_SIDE:
        unit = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
        lower, failed = torch.linalg.cholesky_ex(covariance + floor * unit)
        if not bool(failed):
            return lower, torch.linalg.solve_triangular(lower, unit, upper=False)
    values, vectors = torch.linalg.eigh(covariance)
    roots = (values.clamp_min(0.0) + floor).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def scaled(tensor: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """The tensor with the fibres along `dim` multiplied from the right by a matrix, or a diagonal one's vector."""
    return _times(tensor.movedim(dim, -1), matrix).movedim(-1, dim)


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
