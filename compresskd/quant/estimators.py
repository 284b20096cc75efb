"""Gradients through rounding: the straight-through estimator and the learned step size.

v = w / s are weights in units of the scale, level(v) what the grid makes of them, between `lowest` and
`highest`. Both pass the gradient of w where lowest <= v <= highest and stop it where the grid clips.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compresskd.quant.granularity import Granularity, PerTensor
from compresskd.quant.grid import Grid, spread


class Rounding(NamedTuple):
    """All that rounding a tensor needs: scale [S] float16, zero_point [S] int8 or None, grid, granularity."""

    scale: Tensor
    zero_point: Tensor | None
    grid: Grid
    granularity: Granularity

    def wide(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point in float32 that broadcast against w."""
        return spread(self.scale, self.zero_point, self.grid, self.granularity, w.shape)

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """w rounded to the grid in float32, in its dtype again, and 1.0 where it was not clipped, 0.0 where it was.

        The values are those of `fake_quantize`: the bounds being levels, clipping first is the same, and tells what
        was clipped in one pass. Every pass over a large weight is felt in the time of a training step.
        """
        wide_scale, offset = self.wide(w)
        # The strides of w are kept even where several describe the same memory: convolutions choose by them.
        ratio = torch.mul(w, 1.0 / wide_scale, out=torch.empty_like(w, dtype=torch.float32))
        low, high = self.grid.low + self.grid.shift, self.grid.high + self.grid.shift
        levels = torch.empty_like(ratio)
        if offset is None:
            torch.clamp(ratio, low, high, out=levels)
        else:
            torch.clamp(ratio, low - offset, high - offset, out=levels)
        inside = torch.eq(
            levels, ratio, out=torch.empty_like(ratio)
        )  # products with booleans take five times longer
        levels = levels.floor_().add_(self.grid.shift) if self.grid.shift else levels.round_()
        return levels.mul_(wide_scale).to(w.dtype), inside


class StraightThrough(torch.autograd.Function):
    """`apply(w, rounding)`; no gradient for the scale.

    Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al. 2013, arXiv:1308.3432),
    with the clipping of Hubara et al. 2016 (arXiv:1602.02830), equation 4.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, rounding: Rounding) -> Tensor:
        """`rounding(w)`."""
        rounded, inside = rounding(w)
        ctx.save_for_backward(inside)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """The incoming gradient where nothing is clipped."""
        (inside,) = ctx.saved_tensors
        return (grad * inside).to(grad.dtype), None


class LearnedStep(torch.autograd.Function):
    """`apply(w, log_scale, rounding)`; `rounding.scale` is exp(log_scale) in float16.

    Learned Step Size Quantization (Esser et al. 2020, arXiv:1902.08153), equations 1 to 3: d output / d s is
    level(v) - v where nothing is clipped, else `lowest` or `highest`; it is multiplied by 1 / sqrt(N Q), N
    weights to a scale and Q the largest level (section 2.2). What is learned here is log s, which cannot
    turn negative. Its gradient is that of s divided by s: a step of gradient descent then changes s by the
    ratio by which a step on s itself would have, which is the ratio that their section 2.2 matches to the
    weights'.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, log_scale: Tensor, rounding: Rounding) -> Tensor:
        """`rounding(w)`."""
        rounded, inside = rounding(w)
        ctx.save_for_backward(w, log_scale, rounded, inside)
        ctx.rounding = rounding
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of w and of log_scale."""
        w, log_scale, rounded, inside = ctx.saved_tensors
        rounding = ctx.rounding
        # `error` is s times equation 3, and the gradient of log s is that of s over s: hence the square below
        error = torch.addcmul(rounded.float(), w.float(), inside, value=-1)
        slope = _inner_products(grad, error, rounding.granularity) / rounding.scale.float().square()
        factor = learned_step_factor(w.numel() // rounding.scale.numel(), rounding.grid)
        return (grad * inside).to(grad.dtype), (slope * factor).to(log_scale.dtype), None


def _inner_products(a: Tensor, b: Tensor, granularity: Granularity) -> Tensor:
    """[S]: <a, b> over each block, in float32."""
    if a.dtype == b.dtype == torch.float32 and granularity == PerTensor():
        return torch.dot(a.reshape(-1), b.reshape(-1)).reshape(1)
    return granularity.total(a.float() * b.float())


def learned_step_factor(num_weights: int, grid: Grid) -> float:
    """1 / sqrt(N Q) with N weights to a scale; Q is the largest level, on the affine grid the number of steps."""
    largest = grid.high - grid.low if grid.has_zero_point else grid.high + grid.shift
    return (max(num_weights, 1) * largest) ** -0.5
