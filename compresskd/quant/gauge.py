"""The gauge of a tensor train: matrices between cores leave the product as it is, but not what rounding does.

Shape legend: core k is [r_{k-1}, m_k, n_k, r_k]. A gauge is one orthogonal matrix Q_k [r_k, r_k] for every
TT-rank; core k becomes Q_{k-1}^T core Q_k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from compresskd.optimizer import make_optimizer
from compresskd.quant.environments import Weights, inner_product
from compresskd.quant.estimators import LearnedStep, Rounding
from compresskd.quant.granularity import Granularity
from compresskd.quant.grid import Grid, quantize
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.scale import find_scale, to_float16


@dataclass(frozen=True)
class Gauged:
    """What `learn_gauge` found: float64 cores of the same product, and their rounding to nearest."""

    cores: list[Tensor]
    tensors: list[QuantizedTensor]


def balance(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same product (float64 cores) with the root of the singular values on both sides of every cut.

    Left-orthogonalised by QR from the left, then one SVD a cut from the right; TT-ranks stay as they are, also
    where the rank is deficient.
    """
    result = [core.double() for core in cores]
    for k in range(len(result) - 1):
        left, m, n, right = result[k].shape
        q, r = torch.linalg.qr(result[k].reshape(-1, right))
        result[k] = _padded(q, 1, right).reshape(left, m, n, right)
        result[k + 1] = torch.einsum("ab,bmnc->amnc", _padded(r, 0, right), result[k + 1])
    roots: list[Tensor] = []
    for k in reversed(range(1, len(result))):
        left = result[k].shape[0]
        u, s, v = torch.linalg.svd(result[k].reshape(left, -1), full_matrices=False)
        result[k] = _padded(v, 0, left).reshape(result[k].shape)
        result[k - 1] = torch.einsum("amnb,bc->amnc", result[k - 1], _padded(u * s, 1, left))
        s = _padded(s, 0, left)
        roots.insert(0, s.clamp(min=float(s.max()) * 1e-8 + 1e-100).sqrt())
    for k, root in enumerate(roots):
        result[k] = result[k] / root
        result[k + 1] = result[k + 1] * root[:, None, None, None]
    return result


def _padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Zeros appended along `dim`, so that a TT-rank larger than its unfolding's stays as it is."""
    if tensor.shape[dim] == size:
        return tensor
    shape = [size - n if d == dim else n for d, n in enumerate(tensor.shape)]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def rotate(cores: Sequence[Tensor], gauge: Sequence[Tensor]) -> list[Tensor]:
    """Core k becomes Q_{k-1}^T core Q_k; `gauge` holds the d - 1 orthogonal matrices of the TT-ranks."""
    rotated = []
    for k, core in enumerate(cores):
        new = core
        if k > 0:
            new = torch.einsum("ab,amnc->bmnc", gauge[k - 1], new)
        if k < len(gauge):
            new = torch.einsum("amnb,bc->amnc", new, gauge[k])
        rotated.append(new)
    return rotated


def mixing_matrix(size: int, generator: torch.Generator) -> Tensor:
    """A randomised orthogonal matrix [size, size] (float64) that spreads every direction evenly: diag(+-1) H.

    H is Hadamard's where size is a power of two, else Hartley's, cos + sin of 2 pi i j / size over
    sqrt(size).
    """
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    if size & (size - 1) == 0:
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    else:
        angle = 2 * torch.pi / size * torch.outer(torch.arange(size), torch.arange(size)).double()
        matrix = angle.cos() + angle.sin()
    return signs[:, None] * matrix / size**0.5


def learn_gauge(
    cores: Sequence[Tensor],
    grid: Grid,
    granularity: Granularity,
    *,
    weights: Weights = None,
    num_steps: int = 300,
    seed: int = 0,
) -> Gauged:
    """Find orthogonal gauges and scales at which rounding to nearest harms the product least.

    From balanced cores and a randomised Hadamard rotation, Adam on Q_k = start_k exp(A_k - A_k^T) and on the
    logarithms of the scales, the rounding passed straight through (LSQ). The loss is |W - W'|^2 / |W|^2, or
    its weighted form, by environments. The best rounding seen is kept; it is never worse than the start.

    Args:
        cores: of any floating dtype.
        grid: the integers.
        granularity: which elements of a core share a scale.
        weights: factors of a separable input covariance, see `environments`.
        num_steps: of Adam; 0 gives the start.
        seed: of the signs of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = [mixing_matrix(core.shape[3], generator).to(core.device) for core in cores[:-1]]
    exact = rotate(balance(cores), mixing)
    angles, scales, zero_points = _search(exact, grid, granularity, weights, num_steps)
    gauged = rotate(exact, [torch.matrix_exp(_skew(angle.double())) for angle in angles])
    tensors = []
    for core, scale, zero_point in zip(gauged, scales, zero_points, strict=True):
        integers = quantize(core, scale, zero_point, grid, granularity)
        tensors.append(QuantizedTensor(integers, scale, zero_point, grid, granularity))
    return Gauged(gauged, tensors)


def _search(
    exact: list[Tensor], grid: Grid, granularity: Granularity, weights: Weights, num_steps: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """Best angles A_k [r_k, r_k], float16 scales and zero points seen over `num_steps` steps."""
    cores = [core.float() for core in exact]
    weights = None if weights is None else [weight.to(cores[0]) for weight in weights]
    norm = inner_product(cores, cores, weights)
    angles = [core.new_zeros(core.shape[3], core.shape[3], requires_grad=True) for core in cores[:-1]]
    first = [find_scale(core, grid, granularity) for core in cores]
    log_scales = [scale.float().log().requires_grad_() for scale, _ in first]
    rate = 0.01 if grid.bits == 8 else 0.05  # what 8 bits lose is so little that larger steps overshoot
    optimizer = make_optimizer(
        torch.optim.Adam, [{"params": angles, "lr": rate}, {"params": log_scales, "lr": 0.01}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(num_steps, 1))
    best, least = (angles, [scale for scale, _ in first]), torch.inf
    for _ in range(num_steps + 1):
        rotated = rotate(cores, [torch.matrix_exp(_skew(angle)) for angle in angles])
        scales = [to_float16(log_scale.detach().exp()) for log_scale in log_scales]
        rounded = [
            cast(Tensor, LearnedStep.apply(core, log_scale, Rounding(scale, zero_point, grid, granularity)))
            for core, log_scale, scale, (_, zero_point) in zip(
                rotated, log_scales, scales, first, strict=True
            )
        ]
        cross, own = inner_product(cores, rounded, weights), inner_product(rounded, rounded, weights)
        loss = (norm - 2 * cross + own) / norm
        if float(loss.detach()) < least:
            best, least = ([angle.detach().clone() for angle in angles], scales), float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return best[0], best[1], [zero_point for _, zero_point in first]


def _skew(angle: Tensor) -> Tensor:
    return angle - angle.T
