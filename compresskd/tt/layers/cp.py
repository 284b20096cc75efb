"""Linear layers and convolutions in CP format: sums of rank-one tensors.

The weight of a linear layer, read as [m_1, m_2, n_1, n_2], is sum_r a_1 o a_2 o b_1 o b_2; a kernel [O, I, kh, kw] is
sum_r o o i o h o w, which runs as 1x1, depthwise kh x 1, depthwise 1 x kw, 1x1 (Lebedev et al., ICLR 2015). Fitted by
alternating least squares through tensorly.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.decompose.modes import Pair
from compresskd.tt.execution.convolution import Geometry
from compresskd.tt.layers.base import FactorizedLayer, OfGeometry

NUM_ITERATIONS = 100
TOLERANCE = 1e-7


class _CPLayer(FactorizedLayer):
    """A layer whose weight is a sum of `factors`' products over their last dimension, the rank."""

    factors: nn.ParameterList

    @property
    def ranks(self) -> tuple[int, ...]:
        """The one rank."""
        return (self.factors[0].shape[1],)

    def _fill(self, gain: float) -> None:
        total, power = self.fan_in * self.ranks[0], 0.5 / len(self.factors)
        for factor in self.factors:
            factor.normal_(std=(1 / total) ** power)
        self.factors[0].mul_(gain)  # one alone: of a weight of zeros the others have a gradient to give

    @classmethod
    def _empty(cls, options: dict[str, Any], dtype: torch.dtype | None) -> Self:
        (rank,) = options.pop("ranks")
        return cls(**options, rank=rank, device="meta", dtype=dtype)


class CPLinear(_CPLayer):
    """y = x W^T + b; `factors` are [m_k, R] of the output modes, then [n_k, R] of the input modes."""

    FIELDS = ("input_dims", "output_dims", "ranks", "bias")

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"expected rank >= 1, got {rank}")
        self.input_dims, self.output_dims = tuple(input_dims), tuple(output_dims)
        self.in_features, self.out_features = math.prod(input_dims), math.prod(output_dims)
        self.factors = nn.ParameterList(
            [torch.empty(n, rank, device=device, dtype=dtype) for n in (*output_dims, *input_dims)]
        )
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @property
    def dense_shape(self) -> tuple[int, int]:
        """[out_features, in_features]."""
        return self.out_features, self.in_features

    def macs(self, input: Tensor) -> int:
        """Multiply-accumulates for input [..., in_features]: forward writes most of its products element by element."""
        inner = [math.prod(self.input_dims[:k]) for k in range(1, len(self.input_dims) + 1)]
        outer = [math.prod(self.output_dims[:k]) for k in range(1, len(self.output_dims) + 1)]
        return input.numel() // self.in_features * sum(inner + outer) * self.ranks[0]

    def to_dense(self) -> Tensor:
        """The weight [out_features, in_features], differentiable."""
        p = len(self.output_dims)
        factors = list(self.factors)
        return khatri_rao(factors[:p]) @ khatri_rao(factors[p:]).t()

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        p, factors = len(self.output_dims), list(self.factors)
        lead, rank = input.shape[:-1], self.factors[0].shape[1]
        # The last input mode is one product; the others are sums of elementwise products over the rank.
        z = input.reshape(-1, self.input_dims[-1]) @ factors[-1]
        for factor in reversed(factors[p:-1]):
            z = (z.view(-1, factor.shape[0], rank) * factor).sum(1)
        for factor in factors[: p - 1]:
            z = (z.unsqueeze(-2) * factor).reshape(-1, rank)
        y = (z @ factors[p - 1].t()).reshape(*lead, self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)  # autocast computed y in its own


class CPConv2d(OfGeometry, _CPLayer):
    """A convolution of kernel sum_r o o i o h o w; `factors` are [O, R], [I, R], [kh, R], [kw, R]."""

    FIELDS = (
        "in_channels", "out_channels", "kernel_size", "ranks", "stride", "padding", "dilation", "padding_mode", "bias",
    )  # fmt: skip

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        rank: int,
        *,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"expected rank >= 1, got {rank}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.geometry = Geometry.of([(1, 1), kernel_size, (1, 1)], stride, padding, dilation, padding_mode)
        sizes = (out_channels, in_channels, *self.geometry.kernel_size)
        self.factors = nn.ParameterList([torch.empty(n, rank, device=device, dtype=dtype) for n in sizes])
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def to_dense(self) -> Tensor:
        """The kernel [O, I, kh, kw], differentiable."""
        outer, *rest = list(self.factors)
        kernel = outer @ khatri_rao(rest).t()
        return kernel.reshape(self.out_channels, self.in_channels, *self.geometry.kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] or [I, H, W] to [B, O, H', W'] or [O, H', W']."""
        outer, inner, high, wide = list(self.factors)
        geometry, rank, x = self.geometry, self.factors[0].shape[1], input
        top, left = (geometry.pads[2], geometry.pads[0]) if geometry.native else (0, 0)
        if not geometry.native:
            mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
            x = F.pad(x, geometry.pads, mode=mode)
        x = F.conv2d(x, inner.t()[:, :, None, None])
        stride, dilation = geometry.stride, geometry.dilation
        x = F.conv2d(x, high.t()[:, None, :, None], None, (stride[0], 1), (top, 0), (dilation[0], 1), rank)
        x = F.conv2d(x, wide.t()[:, None, None, :], None, (1, stride[1]), (0, left), (1, dilation[1]), rank)
        return F.conv2d(x, outer[:, :, None, None], self.bias)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Column-wise Kronecker product of [n_k, R]: [n_1 n_2 ..., R]."""
    result = factors[0]
    for factor in factors[1:]:
        result = (result.unsqueeze(1) * factor.unsqueeze(0)).reshape(-1, factor.shape[1])
    return result


def cp_linear(
    linear: nn.Linear, input_dims: Sequence[int], output_dims: Sequence[int], rank: int
) -> CPLinear:
    """The layer fitted to the weight."""
    factors = fit_cp(linear.weight.detach().reshape(*output_dims, *input_dims), rank)
    layer = CPLinear(input_dims, output_dims, rank, bias=linear.bias is not None, device="meta")
    layer.factors = nn.ParameterList(factors)
    layer.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
    return layer


def cp_conv(convolution: nn.Conv2d, rank: int) -> CPConv2d:
    """The layer fitted to the kernel."""
    layer = CPConv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # pyright: ignore[reportArgumentType]
        rank,
        stride=convolution.stride,  # pyright: ignore[reportArgumentType]
        padding=convolution.padding,  # pyright: ignore[reportArgumentType]
        dilation=convolution.dilation,  # pyright: ignore[reportArgumentType]
        bias=convolution.bias is not None,
        padding_mode=convolution.padding_mode,
        device="meta",
    )
    layer.factors = nn.ParameterList(fit_cp(convolution.weight.detach(), rank))
    layer.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach().clone())
    return layer


def fit_cp(tensor: Tensor, rank: int) -> list[Tensor]:
    """One factor [size, rank] for each axis, the scales shared evenly, in the dtype of `tensor`."""
    from tensorly import backend_context  # pyright: ignore[reportAttributeAccessIssue]
    from tensorly.decomposition import parafac

    with backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, factors = parafac(
            tensor.double().cpu().numpy(),
            rank,
            n_iter_max=NUM_ITERATIONS,
            tol=TOLERANCE,
            init="svd" if rank <= max(tensor.shape) else "random",
            random_state=0,
        )
    found = [torch.from_numpy(factor) for factor in factors]
    norms = [factor.norm(dim=0).clamp_min(1e-30) for factor in found]
    scale = (torch.from_numpy(weights) * math.prod(norms)).abs() ** (1 / len(found))
    sign = torch.from_numpy(weights).sign()
    found = [factor / norm * scale for factor, norm in zip(found, norms, strict=True)]
    found[0] = found[0] * torch.where(sign == 0, torch.ones_like(sign), sign)
    return [factor.to(tensor).contiguous() for factor in found]
