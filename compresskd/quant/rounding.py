"""Rounding one core onto its grid when the others are fixed: least squares on integers.

The error of the product is a quadratic of the core, f(X) = <X, H X> - 2 <X, T> + const with a Hessian that
is a Kronecker product, H X = K X A X B: A and B are the environments to the left and to the right, K weighs
the input mode. Nothing of the size of H is ever formed.

Shape legend: X [c, p, r, s]; c input modes that K couples (c = 1 where nothing is weighted), p slices that
are independent of each other, r left TT-rank, s right TT-rank; K [c, c], A [r, r], B [s, s]. All float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.quant.grid import Grid, read_from_grid, round_to_grid

_DAMPING = 1e-4  # of the mean diagonal: a least-squares target of finite size where environments are singular


@dataclass(frozen=True)
class Quadratic:
    """f(X) = <X, H X> - 2 <X, T> + constant."""

    k: Tensor
    a: Tensor
    b: Tensor
    target: Tensor
    constant: float

    def hessian(self, x: Tensor) -> Tensor:
        """H X."""
        return self.a @ torch.einsum("cd,dprs->cprs", self.k, x) @ self.b

    def value(self, x: Tensor) -> float:
        """f(X)."""
        return float((x * (self.hessian(x) - 2 * self.target)).sum()) + self.constant

    def minimizer(self) -> Tensor:
        """X without any grid: K^-1 T with A^-1 and B^-1 on its sides, slightly damped."""
        k, a, b = (
            torch.cholesky_inverse(torch.linalg.cholesky(_damped(m))) for m in (self.k, self.a, self.b)
        )
        return a @ torch.einsum("cd,dprs->cprs", k, self.target) @ b


@dataclass(frozen=True)
class Lattice:
    """The values that X may take: scale and zero point broadcast against it (float64)."""

    grid: Grid
    scale: Tensor
    offset: Tensor | None

    def integers(self, x: Tensor) -> Tensor:
        """Nearest integers, as floats."""
        return round_to_grid(x, self.scale, self.offset, self.grid)

    def values(self, integers: Tensor) -> Tensor:
        """What integers stand for."""
        return read_from_grid(integers, self.scale, self.offset, self.grid)

    def nearest(self, x: Tensor) -> Tensor:
        """X rounded to the lattice."""
        return self.values(self.integers(x))

    def column(self, c: int, i: int, shape: torch.Size) -> Callable[[Tensor, int], Tensor]:
        """`round(x [p], j)` for the entries (c, :, i, j)."""
        scale = self.scale.expand(shape)[c, :, i]
        offset = None if self.offset is None else self.offset.expand(shape)[c, :, i]

        def nearest(x: Tensor, j: int) -> Tensor:
            zero = None if offset is None else offset[:, j]
            integers = round_to_grid(x, scale[:, j], zero, self.grid)
            return read_from_grid(integers, scale[:, j], zero, self.grid)

        return nearest


def round_with_feedback(quadratic: Quadratic, lattice: Lattice, x: Tensor) -> Tensor:
    """Round the entries of X one after the other, moving the later ones to make up for the errors of the earlier.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323), equation 2 and algorithm 1, with U the upper Cholesky
    factor of H^-1, here a Kronecker product of three small ones: entry (c, i, j) with error e changes a
    later entry (c', i', j') by -e U_K[c, c'] U_A[i, i'] U_B[j, j'] over the diagonal ones. Slices p are
    independent.
    """
    u_k, u_a, u_b = (_upper_of_inverse(m) for m in (quadratic.k, quadratic.a, quadratic.b))
    x, rounded = x.clone(), torch.empty_like(x)
    for c in range(x.shape[0]):
        errors_c = torch.empty_like(x[c])
        for i in range(x.shape[2]):
            row, nearest = x[c, :, i].clone(), lattice.column(c, i, x.shape)
            for j in range(x.shape[3]):
                value = nearest(row[:, j], j)
                rounded[c, :, i, j] = value
                errors_c[:, i, j] = (row[:, j] - value) / (u_k[c, c] * u_a[i, i] * u_b[j, j])
                row -= torch.outer(errors_c[:, i, j], u_b[j] * (u_k[c, c] * u_a[i, i]))
            spread = errors_c[:, i] @ u_b
            x[c, :, i + 1 :] -= u_k[c, c] * u_a[i, i + 1 :, None] * spread[:, None, :]
        if c + 1 < x.shape[0]:
            x[c + 1 :] -= u_k[c, c + 1 :, None, None, None] * (u_a.T @ errors_c @ u_b)
    return rounded


def descend(quadratic: Quadratic, lattice: Lattice, x: Tensor) -> Tensor:
    """One pass of coordinate descent over the lattice: every entry moves to its best value, the others fixed.

    f(X) never rises, apart from rounding errors of the arithmetic.
    """
    k, a, b = quadratic.k, quadratic.a, quadratic.b
    x = x.clone()
    for c in range(x.shape[0]):
        weighted = torch.einsum("d,dprs->prs", k[c], x)
        for i in range(x.shape[2]):
            curvature = k[c, c] * a[i, i]
            nearest, before = lattice.column(c, i, x.shape), x[c, :, i].clone()
            gradient = torch.einsum("r,prs->ps", a[i], weighted) @ b - quadratic.target[c, :, i]
            for j in range(x.shape[3]):
                steepness = (curvature * b[j, j]).clamp(min=1e-300)
                old = x[c, :, i, j]
                new = nearest(old - gradient[:, j] / steepness, j)
                gradient += torch.outer(new - old, curvature * b[j])
                x[c, :, i, j] = new
            weighted[:, i] += k[c, c] * (x[c, :, i] - before)
    return x


def _upper_of_inverse(matrix: Tensor) -> Tensor:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(matrix)))
    return torch.linalg.cholesky(inverse, upper=True)


def _damped(matrix: Tensor) -> Tensor:
    mean = matrix.diagonal().mean().clamp(min=1e-100)
    return (matrix + matrix.T) / 2 + _DAMPING * mean * torch.eye(len(matrix), dtype=matrix.dtype)
