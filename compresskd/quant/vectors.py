"""Half precision for what is no weight: biases, the affine of norms, running statistics, positions."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LARGEST = 65504.0  # of float16


class Half(nn.Module):
    """A parametrization that rounds to float16 as the tensor is read; the gradient passes as it is.

    Args:
        is_statistic: the tensor is one that batch norm renews in training mode, and is rounded in evaluation
            mode only.
    """

    def __init__(self, *, is_statistic: bool = False) -> None:
        super().__init__()
        self.is_statistic, self.enabled = is_statistic, True

    def forward(self, vector: Tensor) -> Tensor:
        """The values that float16 would hold, in the dtype of the tensor."""
        if not self.enabled or (self.is_statistic and self.training):
            return vector  # the very tensor: batch norm updates it in place
        return cast(Tensor, _RoundHalf.apply(vector))

    def right_inverse(self, vector: Tensor) -> Tensor:
        """Assigned values become the float ones as they are."""
        return vector

    def convert(self, vector: Tensor) -> Tensor:
        """The float16 tensor; its values are exactly what `forward` returns in evaluation mode."""
        return to_half(vector.detach())


def to_half(vector: Tensor) -> Tensor:
    """float16, what exceeds its range cut off."""
    return vector.clamp(-_LARGEST, _LARGEST).half()


class _RoundHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor) -> Tensor:
        return to_half(vector).to(vector.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad
