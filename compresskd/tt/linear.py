"""A linear layer whose weight is held as a tensor train."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.cores import clip_ranks, core_shapes, to_matrix


class TTLinear(nn.Module):
    """y = x W^T + b with W [out_features, in_features] in tensor-train format.

    Cores are [r_{k-1}, m_k, n_k, r_k] (m output modes, n input modes). Where the product of `input_dims`
    exceeds `in_features` the input is padded by zeros; where that of `output_dims` exceeds `out_features` the
    output is cut.
    `tt_rank` caps every bond; ranks are clipped to what the unfoldings support.
    """

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        tt_rank: int,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_dims, self.output_dims = tuple(input_dims), tuple(output_dims)
        self.in_features = in_features or math.prod(input_dims)
        self.out_features = out_features or math.prod(output_dims)
        ranks = clip_ranks([tt_rank] * (len(self.input_dims) - 1), self.input_dims, self.output_dims)
        shapes = core_shapes(self.input_dims, self.output_dims, ranks)
        self.cores = nn.ParameterList([torch.empty(shape, device=device, dtype=dtype) for shape in shapes])
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh cores that keep the variance of the input: core entries have variance 1 / (n_k r_k)."""
        with torch.no_grad():
            for core in self.cores:
                core.normal_(std=(core.shape[2] * core.shape[3]) ** -0.5)
            if self.bias is not None:
                bound = self.in_features**-0.5
                self.bias.uniform_(-bound, bound)

    @classmethod
    def from_cores(
        cls, cores: Sequence[Tensor], bias: Tensor | None, *, in_features: int, out_features: int
    ) -> Self:
        """The layer that holds copies of these cores and of this bias [out_features]."""
        layer = cls.from_structure(
            {
                "class": cls.__name__,
                "in_features": in_features,
                "out_features": out_features,
                "input_dims": [core.shape[2] for core in cores],
                "output_dims": [core.shape[1] for core in cores],
                "ranks": [core.shape[0] for core in cores[1:]],
                "bias": bias is not None,
            }
        )
        layer.cores = nn.ParameterList([core.detach().clone() for core in cores])
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any]) -> Self:
        """The layer of that structure with all parameters zero."""
        layer = cls(
            structure["input_dims"],
            structure["output_dims"],
            1,
            in_features=structure["in_features"],
            out_features=structure["out_features"],
            bias=structure["bias"],
        )
        shapes = core_shapes(structure["input_dims"], structure["output_dims"], structure["ranks"])
        layer.cores = nn.ParameterList([torch.zeros(shape) for shape in shapes])
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer

    def structure(self) -> dict[str, Any]:
        """All that is needed to build the empty layer again, in plain values."""
        return {
            "class": "TTLinear",
            "in_features": self.in_features,
            "out_features": self.out_features,
            "input_dims": list(self.input_dims),
            "output_dims": list(self.output_dims),
            "ranks": list(self.ranks),
            "bias": self.bias is not None,
        }

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d - 1 inner bonds."""
        return tuple(core.shape[0] for core in list(self.cores)[1:])

    @property
    def num_parameters(self) -> int:
        """Of cores and bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_parameters_dense(self) -> int:
        """Of the dense layer that this one stands for."""
        return self.in_features * self.out_features + (0 if self.bias is None else self.out_features)

    def to_dense(self) -> Tensor:
        """The weight [out_features, in_features], differentiable."""
        return to_matrix(list(self.cores))[: self.out_features, : self.in_features]

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x = input
        if math.prod(self.input_dims) != self.in_features:
            x = F.pad(x, (0, math.prod(self.input_dims) - self.in_features))
        lead = x.shape[:-1]
        z = x.reshape(-1, x.shape[-1], 1)
        for core in reversed(list(self.cores)):
            r, m, n, s = core.shape
            z = core.reshape(r * m, n * s) @ z.reshape(-1, n * s, z.shape[2] if z.dim() == 3 else 1)
            z = z.reshape(z.shape[0], r, m * z.shape[2])
        y = z.reshape(*lead, -1)[..., : self.out_features]
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Modes, ranks, parameters against dense."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"input_dims={self.input_dims}, output_dims={self.output_dims}, ranks={self.ranks}, bias={self.bias is not None}, "
            f"num_parameters={self.num_parameters} of {self.num_parameters_dense} dense"
        )
