"""Rounding a train of two cores, one of outputs and one of inputs, as two matrices with errors fed back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compresskd.quant.cores import QuantizedCores
from compresskd.quant.feedback import (
    GPTQ,
    NEAREST,
    error_of_outputs,
    fit_second,
    round_with_errors_fed_back,
)
from compresskd.quant.gauge import mixing_matrix
from compresskd.quant.granularity import Granularity
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, quantize_tensor


def quantize_pair(
    cores: Sequence[Tensor],
    grids: Sequence[Grid],
    granularities: Sequence[Granularity],
    covariance: Tensor | None,
    *,
    seed: int = 0,
) -> QuantizedCores:
    """Round the two cores of a pair as matrices W = B A, errors fed back in A first, then in B.

    Before that the columns of B are made orthonormal, so that an error of A costs what one of W does, and mixed by a
    random orthogonal matrix, which A takes back: else a few columns hold all of the spectrum, and each row of B has
    large and small numbers under one scale (Tseng et al. 2024, arXiv:2402.04396, section 3, mix weights so). Then B is
    fitted to what has become of A.

    Args:
        cores: `[1, M, 1, r]` and `[r, 1, N, 1]`, or `[1, 1, N, r]` and `[r, M, 1, 1]`.
        grids: whichever gives the smallest error is taken.
        granularities: of each core.
        covariance: `[N, N]`, E[x x^T] of the inputs; without one both are rounded to the nearest.
        seed: of the mixing.

    Returns:
        The integers and the values that training starts from: theirs, so that the nearest to these are the integers.
        Errors of the weight by `nearest` and, with a covariance, of the outputs by `output_nearest` and `output_gptq`.
    """
    pair = Pair.of(cores)
    basis, rest = torch.linalg.qr(pair.b)
    mixing = mixing_matrix(basis.shape[1], torch.Generator().manual_seed(seed))
    pair = replace(pair, b=basis @ mixing, a=mixing.T @ rest @ pair.a)
    exact, start = pair.product(), pair.cores()
    b, a = pair.places

    def on(grid: Grid) -> QuantizedCores:
        plain = [quantize_tensor(core, grid, g) for core, g in zip(start, granularities, strict=True)]
        errors = {"nearest": error_of_outputs(exact, product_of(plain), torch.eye(exact.shape[1]))}
        if covariance is None:
            return QuantizedCores(plain, start, errors)
        fed_back = list(plain)
        fed_back[a] = round_with_errors_fed_back(plain[a], start[a], covariance.cpu(), output_dim=3 * b)
        changed = Pair.of([tensor.dequantize() for tensor in fed_back]).a
        best, seen = fit_second([pair.a, pair.b], changed, covariance)
        core = replace(pair, b=best).cores()[b]
        nearest = quantize_tensor(core, grid, granularities[b])
        fed_back[b] = round_with_errors_fed_back(nearest, core, seen, output_dim=1)
        for way, tensors in ((NEAREST, plain), (GPTQ, fed_back)):
            errors[f"output_{way}"] = error_of_outputs(exact, product_of(tensors), covariance.cpu())
        return QuantizedCores(fed_back, [tensor.dequantize() for tensor in fed_back], errors)

    return min(
        (on(grid) for grid in grids),
        key=lambda each: each.errors.get(f"output_{GPTQ}", each.errors["nearest"]),
    )


@dataclass(frozen=True)
class Pair:
    """A weight W = B A, of a train of one core with all of its outputs and one with all of its inputs.

    Attributes:
        b: [M, r].
        a: [r, N].
        outputs_first: whether the cores are [1, M, 1, r], [r, 1, N, 1], else [1, 1, N, r], [r, M, 1, 1].
    """

    b: Tensor
    a: Tensor
    outputs_first: bool

    @classmethod
    def of(cls, cores: Sequence[Tensor]) -> Pair:
        """In float64, on the CPU."""
        first, second = (core.detach().cpu().double() for core in cores)
        if first.shape[2] == 1 == second.shape[1]:
            return cls(first[0, :, 0], second[:, 0, :, 0], True)
        return cls(second[:, :, 0, 0].T, first[0, 0].T, False)

    @property
    def places(self) -> tuple[int, int]:
        """Those of the cores of B and A."""
        return (0, 1) if self.outputs_first else (1, 0)

    def cores(self) -> list[Tensor]:
        """In float32."""
        (outputs, rank), inputs = self.b.shape, self.a.shape[1]
        if self.outputs_first:
            cores = [self.b.reshape(1, outputs, 1, rank), self.a.reshape(rank, 1, inputs, 1)]
        else:
            cores = [self.a.T.reshape(1, 1, inputs, rank), self.b.T.reshape(rank, outputs, 1, 1)]
        return [core.float().contiguous() for core in cores]

    def product(self) -> Tensor:
        """W [M, N]."""
        return self.b @ self.a


def product_of(tensors: Sequence[QuantizedTensor]) -> Tensor:
    """W [M, N] of the integers of a pair, in float64."""
    return Pair.of([tensor.dequantize() for tensor in tensors]).product()
