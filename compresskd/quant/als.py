"""Alternating least squares on the integer grid: the cores of a train are rounded one at a time, the others fixed.

Shape legend: core k is [r_{k-1}, m_k, n_k, r_k]; `rounding` holds the work on one core.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compresskd.quant.environments import Weights, inner_product, left_environments, right_environments, weigh
from compresskd.quant.grid import spread
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.rounding import Lattice, Quadratic, descend, round_with_feedback
from compresskd.quant.scale import find_scale, to_float16

_MAX_PASSES = 4  # of coordinate descent over a core
_CONVERGED = 1e-3  # relative fall of the squared error below which passes and sweeps end
_NUM_CONJUGATE_STEPS = 8


@dataclass(frozen=True)
class Refined:
    """Tensors, and the relative error of the product before the first and after every sweep."""

    tensors: list[QuantizedTensor]
    errors: list[float]


def refine(
    cores: Sequence[Tensor],
    tensors: Sequence[QuantizedTensor],
    *,
    weights: Weights = None,
    num_sweeps: int = 12,
) -> Refined:
    """Lower |W - W'| / |W| by choosing the integers and scales of every core anew, the others fixed, in sweeps.

    For one core: the unrounded least-squares solution rounded with error feedback, and the present integers,
    each improved by coordinate descent and by scales in closed form; the best is taken. The error never
    rises. Alternating quantized factors as in CALDERA (Saha et al. 2024, arXiv:2405.18886), rounding as in
    GPTQ (arXiv:2210.17323).

    Args:
        cores: the exact train, W.
        tensors: its present rounding, W', in the same gauge or another.
        weights: factors of a separable input covariance, see `environments`.
        num_sweeps: at most; fewer where the error no longer falls.
    """
    exact = [core.double() for core in cores]
    weights = None if weights is None else [weight.double() for weight in weights]
    norm = float(inner_product(exact, exact, weights))
    tensors = list(tensors)
    values = [tensor.dequantize().double() for tensor in tensors]
    errors = [_relative(exact, values, weights, norm)]
    for sweep in range(num_sweeps if norm > 0 else 0):
        order = range(len(exact)) if sweep % 2 == 0 else reversed(range(len(exact)))
        for k in order:
            quadratic = _quadratic(exact, values, weights, norm, k)
            tensors[k] = _refine_core(quadratic, tensors[k], weights is not None)
            values[k] = tensors[k].dequantize().double()
        errors.append(_relative(exact, values, weights, norm))
        if errors[-1] ** 2 > errors[-2] ** 2 * (1 - _CONVERGED):
            break
    return Refined(tensors, errors)


def _relative(exact: Sequence[Tensor], values: Sequence[Tensor], weights: Weights, norm: float) -> float:
    cross, own = inner_product(exact, values, weights), inner_product(values, values, weights)
    return max(norm - 2 * float(cross) + float(own), 0.0) ** 0.5 / norm**0.5 if norm > 0 else 0.0


def _quadratic(
    exact: Sequence[Tensor], values: Sequence[Tensor], weights: Weights, norm: float, k: int
) -> Quadratic:
    """The squared error of the product as a function of core k."""
    left, right = (
        left_environments(values, values, weights)[k],
        right_environments(values, values, weights)[k + 1],
    )
    cross_left = left_environments(exact, values, weights)[k]
    cross_right = right_environments(exact, values, weights)[k + 1]
    weighted = weigh(exact[k], None if weights is None else weights[k])
    target = torch.einsum("ab,amnc,cd->bmnd", cross_left, weighted, cross_right)
    coupling = torch.ones(1, 1, dtype=torch.float64) if weights is None else weights[k]
    return Quadratic(coupling, left, right, _to_slices(target, weights is not None), norm)


def _refine_core(quadratic: Quadratic, tensor: QuantizedTensor, coupled: bool) -> QuantizedTensor:
    best, least = tensor, quadratic.value(_to_slices(tensor.dequantize().double(), coupled))
    optimum = quadratic.minimizer()
    own_scale, _ = find_scale(_to_core(optimum, tensor.shape, coupled), tensor.grid, tensor.granularity)
    rescaled = replace(tensor, scale=own_scale)
    for start, continuous in ((tensor, None), (tensor, optimum), (rescaled, optimum)):
        candidate = _round_core(quadratic, start, continuous, coupled)
        value = quadratic.value(_to_slices(candidate.dequantize().double(), coupled))
        if value < least:
            best, least = candidate, value
    return best


def _round_core(
    quadratic: Quadratic, tensor: QuantizedTensor, continuous: Tensor | None, coupled: bool
) -> QuantizedTensor:
    """Integers and scales from the present ones, or from a continuous X [c, p, r, s] by error feedback."""
    lattice = _lattice(tensor, coupled)
    if continuous is None:
        x = lattice.values(_to_slices(tensor.integers.double(), coupled))
    else:
        x = round_with_feedback(quadratic, lattice, continuous)
    value = quadratic.value(x)
    for _ in range(_MAX_PASSES):
        x = descend(quadratic, lattice, x)
        integers = lattice.integers(x)
        stored = _to_core(integers, tensor.shape, coupled).to(torch.int8)
        tensor = _with_best_scale(quadratic, replace(tensor, integers=stored), coupled)
        lattice = _lattice(tensor, coupled)
        x = lattice.values(integers)
        previous, value = value, quadratic.value(x)
        if value > previous * (1 - _CONVERGED):
            break
    return tensor


def _with_best_scale(quadratic: Quadratic, tensor: QuantizedTensor, coupled: bool) -> QuantizedTensor:
    """The same integers with the scales [S] that minimise f, by conjugate gradients, if these are better."""
    granularity, shape = tensor.granularity, tensor.shape
    lattice = _lattice(tensor, coupled)
    x = lattice.values(_to_slices(tensor.integers.double(), coupled))
    levels = x / lattice.scale

    def product(direction: Tensor) -> Tensor:
        moved = levels * _to_slices(granularity.expand(direction, shape).expand(shape), coupled)
        return granularity.total(_to_core(levels * quadratic.hessian(moved), shape, coupled))

    rhs = granularity.total(_to_core(levels * quadratic.target, shape, coupled))
    scale = to_float16(_conjugate_gradients(product, rhs, tensor.scale.double()))
    new = replace(tensor, scale=scale)
    return new if quadratic.value(levels * _lattice(new, coupled).scale) < quadratic.value(x) else tensor


def _conjugate_gradients(product: Callable[[Tensor], Tensor], rhs: Tensor, start: Tensor) -> Tensor:
    """Approximate solution [S] of product(solution) = rhs; exact where S = 1."""
    solution, residual = start, rhs - product(start)
    direction, size = residual, residual @ residual
    for _ in range(min(_NUM_CONJUGATE_STEPS, len(rhs))):
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:
            break
        solution = solution + size / curvature * direction
        residual = residual - size / curvature * image
        direction, size = residual + (residual @ residual) / size * direction, residual @ residual
    return solution


def _lattice(tensor: QuantizedTensor, coupled: bool) -> Lattice:
    wide, offset = spread(tensor.scale, tensor.zero_point, tensor.grid, tensor.granularity, tensor.shape)
    wide = _to_slices(wide.double().expand(tensor.shape), coupled)
    offset = None if offset is None else _to_slices(offset.double().expand(tensor.shape), coupled)
    return Lattice(tensor.grid, wide, offset)


def _to_slices(core: Tensor, coupled: bool) -> Tensor:
    """[r, m, n, s] to [n, m, r, s] where the input mode is coupled, else to [1, m n, r, s]."""
    if coupled:
        return core.permute(2, 1, 0, 3).contiguous()
    r, m, n, s = core.shape
    return core.permute(1, 2, 0, 3).reshape(1, m * n, r, s)


def _to_core(slices: Tensor, shape: torch.Size, coupled: bool) -> Tensor:
    r, m, n, s = shape
    if coupled:
        return slices.permute(2, 1, 0, 3).contiguous()
    return slices.reshape(m, n, r, s).permute(2, 0, 1, 3).contiguous()
