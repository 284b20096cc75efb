"""A linear layer in Tucker format, and the Tucker-2 form of a convolution.

The weight [M, N] is read as the tensor [m_1, m_2, n_1, n_2] = core x_k factors. The Tucker-2 form of a convolution
(Kim et al., ICLR 2016) is a tensor train of three cores, so `TTConv2d` holds it; only its fit differs, by higher
order orthogonal iteration (De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21 (2000)) through tensorly.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.tt.layers.base import FactorizedLayer

NUM_ITERATIONS = 20


class TuckerLinear(FactorizedLayer):
    """y = x W^T + b; `core` [a_1, ..., b_1, ...], `factors` [m_k, a_k] of outputs, then [n_k, b_k] of inputs."""

    FIELDS = ("input_dims", "output_dims", "ranks", "bias")

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        ranks: Sequence[int],
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_dims, self.output_dims = tuple(input_dims), tuple(output_dims)
        self.in_features, self.out_features = math.prod(input_dims), math.prod(output_dims)
        dims = (*self.output_dims, *self.input_dims)
        if len(ranks) != len(dims) or any(not 1 <= r <= size for r, size in zip(ranks, dims, strict=False)):
            raise ValueError(f"expected {len(dims)} ranks between 1 and the modes {dims}, got {tuple(ranks)}")
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.core = nn.Parameter(torch.empty(*ranks, **options))
        self.factors = nn.ParameterList(
            [torch.empty(size, rank, **options) for size, rank in zip(dims, ranks, strict=True)]
        )
        self.bias = nn.Parameter(torch.empty(self.out_features, **options)) if bias else None
        self.reset_parameters()

    @property
    def dense_shape(self) -> tuple[int, int]:
        """[out_features, in_features]."""
        return self.out_features, self.in_features

    def _fill(self, gain: float) -> None:
        p = len(self.output_dims)
        for k, factor in enumerate(self.factors):
            factor.normal_(std=factor.shape[1 if k < p else 0] ** -0.5)
        self.core.normal_(std=gain * math.prod(self.core.shape[p:]) ** -0.5)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of the output modes, then of the input modes."""
        return tuple(self.core.shape)

    def to_dense(self) -> Tensor:
        """The weight [out_features, in_features], differentiable."""
        weight = self.core
        for factor in self.factors:
            # The leading axis is replaced and moved last, so that after all of them the order is the same.
            weight = torch.tensordot(weight, factor, dims=([0], [1]))  # pyright: ignore[reportArgumentType]
        return weight.reshape(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        lead, p = input.shape[:-1], len(self.output_dims)
        z = input.reshape(-1, *self.input_dims)
        factors = list(self.factors)
        for factor in reversed(factors[p:]):
            z = (
                (z.reshape(-1, factor.shape[0]) @ factor)
                .reshape(*z.shape[:-1], factor.shape[1])
                .movedim(-1, 1)
            )
        inner = self.core.reshape(math.prod(self.core.shape[:p]), -1)
        z = (z.reshape(-1, inner.shape[1]) @ inner.t()).reshape(-1, *self.core.shape[:p])
        for factor in reversed(factors[:p]):
            z = (
                (z.reshape(-1, factor.shape[1]) @ factor.t())
                .reshape(*z.shape[:-1], factor.shape[0])
                .movedim(-1, 1)
            )
        y = z.reshape(*lead, self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)  # autocast computed y in its own


def tucker_linear(
    linear: nn.Linear, input_dims: Sequence[int], output_dims: Sequence[int], rank: int
) -> TuckerLinear:
    """The layer fitted to the weight, every rank at most `rank`."""
    dims = (*output_dims, *input_dims)
    ranks = [min(rank, size) for size in dims]
    core, factors = fit_tucker(linear.weight.detach().reshape(dims), list(range(len(dims))), ranks)
    layer = TuckerLinear(input_dims, output_dims, ranks, bias=linear.bias is not None, device="meta")
    layer.core = nn.Parameter(core)
    layer.factors = nn.ParameterList(factors)
    layer.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
    return layer


def tucker2_cores(weight: Tensor, rank: int) -> list[Tensor]:
    """Three TT cores of a kernel [O, I, kh, kw], channel ranks at most `rank`."""
    num_outputs, num_inputs, kh, kw = weight.shape
    ranks = [min(rank, num_outputs), min(rank, num_inputs)]
    core, (outer, inner) = fit_tucker(weight.detach(), [0, 1], ranks)
    middle = core.permute(1, 2, 3, 0).reshape(ranks[1], 1, kh * kw, ranks[0])
    return [inner.reshape(1, 1, num_inputs, ranks[1]), middle, outer.t().reshape(ranks[0], num_outputs, 1, 1)]


def fit_tucker(tensor: Tensor, modes: Sequence[int], ranks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Core and one factor [size, rank] for each of `modes`, in the dtype of `tensor`."""
    from tensorly import backend_context  # pyright: ignore[reportAttributeAccessIssue]
    from tensorly.decomposition import partial_tucker

    with backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = tensor.double().cpu().numpy()
        (core, factors), _ = partial_tucker(
            array, rank=list(ranks), modes=list(modes), n_iter_max=NUM_ITERATIONS, init="svd", random_state=0
        )
    return tensor.new_tensor(core), [tensor.new_tensor(factor) for factor in factors]
