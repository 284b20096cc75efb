"""Batch normalization by the statistics of a batch whose samples are spread over processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from compresskd.distributed.group import Group


def synchronized(model: nn.Module, group: Group) -> AbstractContextManager[Any]:
    """Within, batch norms in training mode take mean and variance over the samples of all processes of `group`.

    torch's own SyncBatchNorm is another class, which would be stored, and refuses CPUs.
    """
    normalizes = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return _Synchronized(group) if group.world > 1 and normalizes else nullcontext()


class _Synchronized(TorchFunctionMode):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return batch_norm(self._group, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_norm(
    group: Group,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` over the samples of all processes; input [B, C, ...] of each."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, total = _statistics(input.detach(), group)
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        unbiased = var * (total / (total - 1).clamp_min(1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return _Normalize.apply(input, weight, bias, mean, var, total, eps, group)  # pyright: ignore


def _statistics(x: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [C] over all processes, and the number of values of a channel [1].

    They come from the means, variances and counts of the processes (Chan, Golub & LeVeque 1983), in which nothing
    cancels, by few operations: on a CPU each costs as much as a small layer's arithmetic.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    if count:
        own = torch.batch_norm_update_stats(x.float(), None, None, 0.0)
    else:
        own = x.new_zeros(2, channels, dtype=torch.float32).unbind()
    table = group.table(torch.cat([*own, own[0].new_full((1,), count)]))
    means, variances, counts = table.split([channels, channels, 1], dim=1)
    total = counts.sum(0)
    shares = (counts / total).T
    mean = shares @ means
    apart = means - mean
    return mean[0], (shares @ torch.addcmul(variances, apart, apart))[0], total


class _Normalize(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) weight + bias, where mean and var are those of all processes.

    The gradient of x is that of Ioffe & Szegedy 2015 (arXiv:1502.03167, section 3), its two means over the samples of
    all processes; those of weight and bias are of this process's samples, as those of any parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        total: Tensor,
        eps: float,
        group: Group,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, var, total = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        per_value = scale * (var + ctx.eps).rsqrt()
        sums = ctx.group.sum(torch.stack([of_weight, of_bias]))
        of_x, constant = (sums * (per_value / -total)).unbind()
        towards_mean = F.batch_norm(x, mean, var, of_x, constant, False, 0.0, ctx.eps)
        shape = (1, -1, *[1] * (x.ndim - 2))
        of_input = towards_mean.addcmul_(grad, per_value.to(grad.dtype).view(shape))
        of_affine = [
            g if n else None for g, n in zip((of_weight, of_bias), ctx.needs_input_grad[1:3], strict=True)
        ]
        return of_input, *of_affine, None, None, None, None, None
