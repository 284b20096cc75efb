"""A two-dimensional convolution whose kernel is a tensor train, run as a chain of native convolutions.

The kernel [O, I, kh, kw] is read as the matrix [O, I kh kw]; the sequence (I, kh, kw, O) is cut into
consecutive stages. A stage with kernel (a, b) is one native convolution from r_{k-1} (the first: I) to r_k
(the last: O) channels, and core k is [r_{k-1}, m_k, n_k, r_k] with m_k = O in the last stage, else 1, and
n_k = a b, times I in the first stage. Stages ((1, 1), (3, 3), (1, 1)) are the Tucker-2 form of Kim et al., ICLR 2016, in TT format.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.cores import clip_ranks, core_shapes, to_matrix

Pair = tuple[int, int]


def stage_dims(stages: Sequence[Pair], in_channels: int, out_channels: int) -> tuple[list[int], list[int]]:
    """Input and output modes of the cores of these stages."""
    input_dims = [a * b for a, b in stages]
    input_dims[0] *= in_channels
    return input_dims, [1] * (len(stages) - 1) + [out_channels]


class TTConv2d(nn.Module):
    """A convolution [B, I, H, W] to [B, O, H', W'] as a chain of stages, with nn.Conv2d's options but `groups`.

    `tt_rank` caps every bond; ranks are clipped to what the unfoldings support.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stages: Sequence[Pair],
        tt_rank: int,
        *,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups != 1:
            raise ValueError(
                f"TTConv2d has no form for groups={groups}: expected groups=1; leave such layers dense"
            )
        self.stages = tuple((a, b) for a, b in stages)
        kernel_size = (math.prod(a for a, _ in self.stages), math.prod(b for _, b in self.stages))
        # nn.Conv2d checks and normalises the geometry; on the meta device it costs nothing.
        reference = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            padding_mode=padding_mode,
            device="meta",
        )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride: Pair = reference.stride  # pyright: ignore[reportAttributeAccessIssue]
        self.padding: Pair | str = reference.padding  # pyright: ignore[reportAttributeAccessIssue]
        self.dilation: Pair = reference.dilation  # pyright: ignore[reportAttributeAccessIssue]
        self.padding_mode = padding_mode
        self._pads: list[int] = reference._reversed_padding_repeated_twice
        self.input_dims, self.output_dims = stage_dims(self.stages, in_channels, out_channels)
        ranks = clip_ranks([tt_rank] * (len(self.stages) - 1), self.input_dims, self.output_dims)
        shapes = core_shapes(self.input_dims, self.output_dims, ranks)
        self.cores = nn.ParameterList([torch.empty(shape, device=device, dtype=dtype) for shape in shapes])
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh cores that keep the variance of the input: core entries have variance 1 / (n_k r_{k-1})."""
        with torch.no_grad():
            for core in self.cores:
                core.normal_(std=(core.shape[2] * core.shape[0]) ** -0.5)
            if self.bias is not None:
                bound = (self.in_channels * math.prod(self.kernel_size)) ** -0.5
                self.bias.uniform_(-bound, bound)

    @classmethod
    def from_cores(cls, cores: Sequence[Tensor], convolution: nn.Conv2d, stages: Sequence[Pair]) -> Self:
        """The layer that holds these cores, with the geometry and a copy of the bias of `convolution`."""
        bias = convolution.bias
        layer = cls(
            convolution.in_channels,
            convolution.out_channels,
            stages,
            1,
            stride=convolution.stride,  # pyright: ignore[reportArgumentType]
            padding=convolution.padding,  # pyright: ignore[reportArgumentType]
            dilation=convolution.dilation,  # pyright: ignore[reportArgumentType]
            groups=convolution.groups,
            bias=bias is not None,
            padding_mode=convolution.padding_mode,
        )
        layer.cores = nn.ParameterList([core.detach().clone() for core in cores])
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any]) -> Self:
        """The layer of that structure with all parameters zero."""
        padding = structure["padding"]
        layer = cls(
            structure["in_channels"],
            structure["out_channels"],
            [(a, b) for a, b in structure["stages"]],
            1,
            stride=tuple(structure["stride"]),
            padding=padding if isinstance(padding, str) else tuple(padding),
            dilation=tuple(structure["dilation"]),
            bias=structure["bias"],
            padding_mode=structure["padding_mode"],
        )
        shapes = core_shapes(layer.input_dims, layer.output_dims, structure["ranks"])
        layer.cores = nn.ParameterList([torch.zeros(shape) for shape in shapes])
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer

    def structure(self) -> dict[str, Any]:
        """All that is needed to build the empty layer again, in plain values."""
        return {
            "class": "TTConv2d",
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "stages": [list(stage) for stage in self.stages],
            "ranks": list(self.ranks),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "padding_mode": self.padding_mode,
            "bias": self.bias is not None,
        }

    @property
    def ranks(self) -> tuple[int, ...]:
        """The inner bonds, one fewer than stages."""
        return tuple(core.shape[0] for core in list(self.cores)[1:])

    @property
    def num_parameters(self) -> int:
        """Of cores and bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_parameters_dense(self) -> int:
        """Of the dense layer that this one stands for."""
        weight = self.out_channels * self.in_channels * math.prod(self.kernel_size)
        return weight + (0 if self.bias is None else self.out_channels)

    def to_dense(self) -> Tensor:
        """The kernel [O, I, kh, kw], differentiable."""
        return to_matrix(list(self.cores)).reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def stage_weights(self) -> list[Tensor]:
        """The kernel [out, in, a, b] of every stage."""
        weights = []
        for k, (core, (a, b)) in enumerate(zip(self.cores, self.stages, strict=True)):
            r, m, _, s = core.shape
            channels = self.in_channels if k == 0 else 1
            split = core.reshape(r, m, channels, a, b, s).permute(1, 5, 0, 2, 3, 4)
            weights.append(split.reshape(m * s, r * channels, a, b))
        return weights

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] or [I, H, W] to [B, O, H', W'] or [O, H', W']."""
        x, padding = self._padded(input)
        weights = self.stage_weights()
        for k, (weight, (a, b)) in enumerate(zip(weights, self.stages, strict=True)):
            x = F.conv2d(
                x,
                weight,
                self.bias if k == len(weights) - 1 else None,
                stride=(
                    self.stride[0] if self._carries(0, k) else 1,
                    self.stride[1] if self._carries(1, k) else 1,
                ),
                padding=(padding[0] if a > 1 else 0, padding[1] if b > 1 else 0),
                dilation=(self.dilation[0] if a > 1 else 1, self.dilation[1] if b > 1 else 1),
            )
        return x

    def _carries(self, axis: int, stage: int) -> bool:
        """Whether the stride of this axis is taken in this stage: where its kernel is, else in the first."""
        holders = [k for k, kernel in enumerate(self.stages) if kernel[axis] > 1]
        return stage == (holders[0] if holders else 0)

    def _padded(self, input: Tensor) -> tuple[Tensor, Pair]:
        """The input, padded here where a stage's own zero padding cannot do it, and what is left to pad."""
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        only_in_kernels = plain and all(
            pad == 0 or size > 1 for pad, size in zip(self.padding, self.kernel_size, strict=True)
        )
        if only_in_kernels:
            return input, (self._pads[2], self._pads[0])
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, self._pads, mode=mode), (0, 0)

    def extra_repr(self) -> str:
        """Geometry, stages, ranks, parameters against dense."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, stages={self.stages}, ranks={self.ranks}, "
            f"bias={self.bias is not None}, num_parameters={self.num_parameters} of "
            f"{self.num_parameters_dense} dense"
        )
