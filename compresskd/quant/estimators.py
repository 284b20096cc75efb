"""Gradients through rounding: the straight-through estimator and the learned step size.

v = w / s are weights in units of the scale, level(v) what the grid makes of them, between `lowest` and
`highest`. Both pass the gradient of w where lowest <= v <= highest and stop it where the grid clips.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compresskd.distributed import Group
from compresskd.quant.granularity import Granularity
from compresskd.quant.grid import Grid, spread

# (grad, x, low, high, grad_input=): grad where low < x < high
_hardtanh_backward = torch.ops.aten.hardtanh_backward.grad_input


class Rounding(NamedTuple):
    """All that rounding a tensor needs: scale [S] float16, zero_point [S] int8 or None, grid, granularity."""

    scale: Tensor
    zero_point: Tensor | None
    grid: Grid
    granularity: Granularity

    def against(self, w: Tensor) -> "Against":
        """Everything in float32 and such that it broadcasts against w."""
        scale, offset = spread(self.scale, self.zero_point, self.grid, self.granularity, w.shape)
        return Against(scale, scale.reciprocal(), offset, self.grid)


class Against(NamedTuple):
    """Scales that broadcast against a weight, their reciprocals, and zero points or None.

    Every pass over a large weight is felt in the time of a training step: there are as few as possible, in place
    where nobody else reads, and none with booleans, whose products take ten times longer.
    """

    scale: Tensor
    per_scale: Tensor
    offset: Tensor | None
    grid: Grid

    def round(self, w: Tensor) -> Tensor:
        """The values of `fake_quantize`, in the dtype of w.

        The bounds being levels, clipping first is the same. Strides are kept even where several describe the same
        memory: convolutions choose by them.
        """
        levels = w * self.per_scale
        if levels.stride() != w.stride():
            levels = torch.empty_like(w, dtype=torch.float32).copy_(levels)
        levels.clamp_(*_bounds(self.grid, self.offset))
        levels = levels.floor_().add_(self.grid.shift) if self.grid.shift else levels.round_()
        return levels.mul_(self.scale).to(w.dtype)

    def inside(self, ratio: Tensor, value: Tensor, out: Tensor) -> Tensor:
        """The value where the grid does not clip ratio = w / s, bounds included; else zero; in out, all float32.

        `out` may be one of the others.
        """
        if self.offset is None:
            return _hardtanh_backward(value, ratio, *_just_outside(self.grid), grad_input=out)
        mask = torch.eq(
            torch.clamp(ratio, *_bounds(self.grid, self.offset)), ratio, out=torch.empty_like(ratio)
        )
        return torch.mul(value, mask, out=out)

    def gradients(
        self, w: Tensor, rounded: Tensor, grad: Tensor, total: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of w, and by scale the sums [S] of s times equation 3 times the gradient, and of w squared."""
        work, wide = w * self.per_scale, w.float()  # one buffer for all: it stays in the cache
        passed = self.inside(work, grad.float(), torch.empty_like(work))
        self.inside(work, wide, work)
        products = total(torch.sub(rounded, work, out=work).mul_(grad))
        return passed, products, total(torch.mul(wide, wide, out=work))


class StraightThrough(torch.autograd.Function):
    """`apply(w, rounding)`; no gradient for the scale.

    Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al. 2013, arXiv:1308.3432),
    with the clipping of Hubara et al. 2016 (arXiv:1602.02830), equation 4.
    """

    @staticmethod
    def forward(w: Tensor, rounding: Rounding) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """w rounded."""
        return rounding.against(w).round(w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep w."""
        w, ctx.rounding = inputs
        ctx.save_for_backward(w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """The incoming gradient where nothing is clipped."""
        (w,) = ctx.saved_tensors
        against = ctx.rounding.against(w)
        ratio = w * against.per_scale
        return against.inside(ratio, grad.float(), ratio).to(grad.dtype), None


class LearnedStep(torch.autograd.Function):
    """`apply(w, log_scale, rounding, group)`; `rounding.scale` is exp(log_scale) in float16.

    `group` are the processes that hold a part each of w, where it is the activations of a batch; they have one scale.
    None stands for this process alone.

    Learned Step Size Quantization (Esser et al. 2020, arXiv:1902.08153), equations 1 to 3: d output / d s is
    level(v) - v where nothing is clipped, else `lowest` or `highest`; it is multiplied by 1 / sqrt(N Q), N
    weights to a scale and Q the largest level (section 2.2). What is learned here is log s, which cannot
    turn negative; its gradient is that of s over the root mean square of the weights. Section 2.2 wants s to change
    by about the ratio by which the weights change. Over s itself, as the paper has it, this ratio is missed at 8 bits,
    where s is small and one clipped weight counts 127: a scale that shrinks then shrinks ever faster, and plain
    gradient descent at rate 0.01 destroyed channels of a ResNet-20.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        w: Tensor, log_scale: Tensor, rounding: Rounding, group: Group | None = None
    ) -> Tensor:
        """w rounded."""
        return rounding.against(w).round(w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep w, what it is rounded to, and how."""
        w, log_scale, ctx.rounding, *group = inputs
        ctx.group = group[0] if group else None
        ctx.save_for_backward(w, log_scale, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of w and of log_scale."""
        w, log_scale, rounded = ctx.saved_tensors
        scale, grid = ctx.rounding.scale.float(), ctx.rounding.grid
        total = ctx.rounding.granularity.total
        passed, products, squares = ctx.rounding.against(w).gradients(w, rounded, grad, total)
        count = w.numel() // scale.numel()
        if ctx.group is not None and ctx.group.world > 1:
            squares, counts = ctx.group.sum(torch.stack([squares, torch.full_like(squares, count)]))
            count = int(counts[0])
        slope = lsq_slope(products, squares, count, lsq_factor(count, grid), scale)
        return passed.to(grad.dtype), slope.to(log_scale.dtype), None, None


def lsq_slope(
    products: Tensor, squares: Tensor, count: int | Tensor, factor: float | Tensor, scale: Tensor
) -> Tensor:
    """The gradient of log s, of the sums that `Against.gradients` gives, which are used up.

    count, factor: how many weights share a scale, and `lsq_factor` of it.
    """
    # half a step is what weights of zero count as, whose scale means nothing
    size = torch.maximum(squares.div_(count).sqrt_(), scale / 2)
    return products.mul_(factor) / (scale * size)


def _bounds(grid: Grid, offset: Tensor | None) -> tuple[Any, Any]:
    """Lowest and highest level: numbers, or tensors where zero points move them."""
    low, high = grid.low + grid.shift, grid.high + grid.shift
    return (low, high) if offset is None else (low - offset, high - offset)


def _just_outside(grid: Grid) -> tuple[float, float]:
    """The float32 numbers next to the bounds: hardtanh's gradient is zero at its own bounds."""
    low, high = grid.low + grid.shift, grid.high + grid.shift
    return low - _ulp(low), high + _ulp(high)


def _ulp(bound: float) -> float:
    """The distance of a float32 to the next one away from zero; by Python alone, which a compiler can follow."""
    return math.ldexp(1.0, math.frexp(bound)[1] - 24)


def lsq_factor(num_weights: int, grid: Grid) -> float:
    """1 / sqrt(N Q) with N weights to a scale; Q is the largest level, on the affine grid the number of steps."""
    largest = grid.high - grid.low if grid.has_zero_point else grid.high + grid.shift
    return (max(num_weights, 1) * largest) ** -0.5
