"""Rounding a dense matrix column by column, each error made up for by the columns that come later."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compresskd.quant.grid import read_from_grid, round_to_grid, spread
from compresskd.quant.pack import QuantizedTensor

ROUNDINGS = ("nearest", "gptq")
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
    rows = _rows(w.detach().double(), output_dim)
    count = rows.shape[1]
    if covariance.shape != (count, count):
        raise ValueError(f"expected a covariance [{count}, {count}], got {list(covariance.shape)}")
    if not torch.isfinite(covariance).all():
        raise ValueError("expected a finite covariance, got NaN or inf among the inputs of the layer")
    wide, offset = spread(tensor.scale, tensor.zero_point, tensor.grid, tensor.granularity, tensor.shape)
    scale = _rows(wide.double().expand(tensor.shape), output_dim)
    zero = None if offset is None else _rows(offset.double().expand(tensor.shape), output_dim)
    order = covariance.diagonal().argsort(descending=True, stable=True)
    upper = _upper_of_inverse(covariance.double()[order][:, order])
    rows = rows[:, order]
    integers = torch.empty_like(rows)
    for first in range(0, count, _BLOCK):
        last = min(first + _BLOCK, count)
        block, factor = rows[:, first:last].clone(), upper[first:last, first:last]
        errors = torch.empty_like(block)
        for j in range(last - first):
            column = order[first + j]
            its_zero = None if zero is None else zero[:, column]
            integers[:, column] = round_to_grid(block[:, j], scale[:, column], its_zero, tensor.grid)
            value = read_from_grid(integers[:, column], scale[:, column], its_zero, tensor.grid)
            errors[:, j] = (block[:, j] - value) / factor[j, j]
            block[:, j:] -= torch.outer(errors[:, j], factor[j, j:])
        rows[:, last:] -= errors @ upper[first:last, last:]
    chosen = integers.to(torch.int8)
    moved = w.movedim(output_dim, 0)
    return replace(tensor, integers=chosen.reshape(moved.shape).movedim(0, output_dim).contiguous())


def _rows(w: Tensor, output_dim: int) -> Tensor:
    return w.movedim(output_dim, 0).flatten(1)


def _upper_of_inverse(matrix: Tensor) -> Tensor:
    mean = matrix.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    damped = (matrix + matrix.T) / 2 + _DAMPING * mean * torch.eye(len(matrix), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
