"""Rounding a dense matrix column by column, each error made up for by the columns that come later.

And of two matrices in turn the second that makes up for what has become of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compresskd.quant.grid import read_from_grid, round_to_grid, spread
from compresskd.quant.pack import QuantizedTensor

NEAREST, GPTQ = ROUNDINGS = ("nearest", "gptq")
_DAMPING = 0.01  # of the mean diagonal, that of the published code: few samples leave directions unseen
_BLOCK = 128  # columns whose errors reach the later ones in one product, as in the paper


def round_with_errors_fed_back(
    tensor: QuantizedTensor, w: Tensor, covariance: Tensor, *, output_dim: int = 0
) -> QuantizedTensor:
    """Integers that lessen ``E|(W - W') x|^2`` at the scales of `tensor`, in place of the nearest ones.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323), algorithm 1: with U the upper Cholesky factor of the inverse of the
    damped covariance, the error e of column i changes a later column j by ``-e U[i, j] / U[i, i]``. Columns of larger
    mean square of the input come first, as its option ``act-order``. An input that is always zero is damped like the
    others, so that its column is rounded to the nearest.

    Args:
        tensor: what rounding to nearest gives: its grid, granularity and scales stay.
        w: the weight, of the shape of `tensor`: `[out, in]`, of a convolution `[out, in, height, width]`.
        covariance: `[N, N]`, E[x x^T] of the inputs, N the product of all dimensions but that of the outputs.
        output_dim: the dimension of the outputs.

    Raises:
        ValueError: the covariance has another size, or is not finite.
    """
    # the columns of the weight as rows, which lie together: each is rounded in turn
    columns = _columns(w.detach(), output_dim).to(torch.float64, copy=True)
    count = len(columns)
    if covariance.shape != (count, count):
        raise ValueError(f"expected a covariance [{count}, {count}], got {list(covariance.shape)}")
    if not torch.isfinite(covariance).all():
        raise ValueError("expected a finite covariance, got NaN or inf among the inputs of the layer")
    wide, offset = spread(tensor.scale, tensor.zero_point, tensor.grid, tensor.granularity, tensor.shape)
    scale = _columns(wide.double().expand(tensor.shape), output_dim)
    zero = None if offset is None else _columns(offset.double().expand(tensor.shape), output_dim)
    order = covariance.diagonal().argsort(descending=True, stable=True)
    upper = _upper_of_inverse(covariance.double()[order][:, order])
    columns = columns[order]
    integers = torch.empty(columns.shape, dtype=torch.int8)
    for first in range(0, count, _BLOCK):
        last = min(first + _BLOCK, count)
        block, factor = columns[first:last], upper[first:last, first:last]
        errors = torch.empty_like(block)
        for j in range(last - first):
            place = order[first + j]
            its_zero = None if zero is None else zero[place]
            rounded = round_to_grid(block[j], scale[place], its_zero, tensor.grid)
            integers[place] = rounded.to(torch.int8)
            value = read_from_grid(rounded, scale[place], its_zero, tensor.grid)
            errors[j] = (block[j] - value) / factor[j, j]
            block[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
        columns[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    shape = w.movedim(output_dim, 0).shape
    return replace(tensor, integers=integers.T.reshape(shape).movedim(0, output_dim).contiguous())


def _columns(w: Tensor, output_dim: int) -> Tensor:
    """The columns of the weight [out, in] as rows [in, out]."""
    return w.movedim(output_dim, 0).flatten(1).T.contiguous()


def _upper_of_inverse(matrix: Tensor) -> Tensor:
    damped = (matrix + matrix.T) / 2 + damping_of(matrix) * torch.eye(len(matrix), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def damping_of(covariance: Tensor) -> Tensor:
    """What is added to the diagonal of a covariance [N, N] float64."""
    return _DAMPING * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)


def fit_second(weights: Sequence[Tensor], changed: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Of two matrices A [r, N] and B [M, r] the B' that lessens E|B A x - B' A' x|^2, and E[A' x x^T A'^T].

    Least squares, B' = B A C A'^T (A' C A'^T)^-1 with C = E[x x^T], damped toward B: few samples leave directions
    unseen.

    Args:
        weights: A and B.
        changed: A', what A has changed to.
        covariance: C [N, N].
    """
    a, b, rounded, covariance = (w.detach().cpu().double() for w in (*weights, changed, covariance))
    seen = rounded @ covariance @ rounded.T
    damping = damping_of(seen)
    damped = seen + damping * torch.eye(len(seen), dtype=torch.float64)
    wanted = b @ (a @ covariance @ rounded.T) + damping * b
    return torch.linalg.solve(damped, wanted, left=False).float(), seen


def error_of_outputs(exact: Tensor, rows: Tensor, covariance: Tensor) -> float:
    """The relative error of the outputs of a matrix [M, N] over inputs of this covariance [N, N]."""

    def norm(x: Tensor) -> float:
        return float(((x @ covariance.to(x)) * x).sum()) ** 0.5

    whole = norm(exact)
    return norm(rows - exact) / whole if whole else 0.0
