"""What every factorized layer shares, and what every layer in tensor-train format does besides."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from compresskd.tt.decompose.cores import balance, clip_ranks, core_shapes, orthogonalize
from compresskd.tt.decompose.metric import Metric
from compresskd.tt.decompose.modes import Pair
from compresskd.tt.decompose.whitening import round_in_metric
from compresskd.tt.execution.cached_operands import Prepared
from compresskd.tt.execution.convolution import Geometry


@dataclass(frozen=True)
class WeightDescription:
    """What is known of a weight without its values: for who asks a layer's weight for its type or its place alone."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool


class FactorizedLayer(nn.Module, ABC):
    """A layer that holds factors in place of a dense weight, and tells how to build itself again.

    Attributes:
        FIELDS: the attributes that `structure` tells, which the constructor takes under the same names.
        OF_MATRICES: whether its factors are matrices [out, in] that are applied one after the other, so that they are
            rounded as weights of ordinary layers are.
    """

    FIELDS: ClassVar[tuple[str, ...]]
    OF_MATRICES: ClassVar[bool] = False
    bias: nn.Parameter | None

    @property
    @abstractmethod
    def dense_shape(self) -> tuple[int, ...]:
        """Of the dense weight that the factors stand for: outputs, inputs, and the size of a kernel."""

    @property
    def weight(self) -> WeightDescription:
        """A description of the dense weight; whoever computes with it fails, and should call `to_dense`."""
        factor = next(self.parameters())
        return WeightDescription(
            torch.Size(self.dense_shape), factor.dtype, factor.device, factor.requires_grad
        )

    @property
    def num_parameters(self) -> int:
        """Of all factors, and of the bias if there is one."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_parameters_dense(self) -> int:
        """Of the dense layer that this one stands for."""
        shape = self.dense_shape
        return math.prod(shape) + (0 if self.bias is None else shape[0])

    @property
    def fan_in(self) -> int:
        """Inputs of each output."""
        return math.prod(self.dense_shape[1:])

    def reset_parameters(self, *, gain: float = 1.0) -> None:
        """Draw fresh factors: for inputs of variance 1 outputs have variance gain^2; the bias as torch's layers'."""
        if next(
            self.parameters()
        ).is_meta:  # nothing to fill; to try would load torch's compiler, a second and more
            return
        with torch.no_grad():
            self._fill(gain)
            if self.bias is not None:
                bound = self.fan_in**-0.5
                self.bias.uniform_(-bound, bound)

    def gain_of(self, deviation: float) -> float:
        """The gain with which fresh factors come to a weight of this root mean square."""
        return deviation * self.fan_in**0.5

    @abstractmethod
    def _fill(self, gain: float) -> None:
        """Draw the factors."""

    def structure(self) -> dict[str, Any]:
        """Return all that is needed to build the empty layer again, in plain values."""
        told = {name: _plain(getattr(self, name)) for name in self.FIELDS if name != "bias"}
        return {"class": type(self).__name__, **told} | (
            {"bias": self.bias is not None} if "bias" in self.FIELDS else {}
        )

    @classmethod
    def from_structure(
        cls,
        structure: Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the layer of a structure, with all parameters zero."""
        options = {name: _tuples(structure[name]) for name in cls.FIELDS}
        layer = cls._empty(options, dtype)
        for module in layer.modules():  # to_empty would load torch's symbolic shapes for nothing
            for name, value in [
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ]:
                zeros = torch.zeros(value.shape, device=device, dtype=value.dtype)
                setattr(module, name, nn.Parameter(zeros) if isinstance(value, nn.Parameter) else zeros)
        return layer

    @classmethod
    def _empty(cls, options: dict[str, Any], dtype: torch.dtype | None) -> Self:
        """The layer with these fields, without values."""
        return cls(**options, device="meta", dtype=dtype)

    def extra_repr(self) -> str:
        """Say the fields, and the parameters against dense."""
        told = {name: value for name, value in self.structure().items() if name != "class"}
        fields = ", ".join(f"{name}={_tuples(value)}" for name, value in told.items())
        return f"{fields}, num_parameters={self.num_parameters} of {self.num_parameters_dense} dense"


class OfGeometry:
    """The sizes of a convolution by torch's names, for a layer that holds a `geometry`."""

    geometry: Geometry
    in_channels: int
    out_channels: int

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """[out_channels, in_channels, height, width] of the kernel."""
        return self.out_channels, self.in_channels, *self.kernel_size

    @property
    def kernel_size(self) -> Pair:
        """As nn.Conv2d's."""
        return self.geometry.kernel_size

    @property
    def stride(self) -> Pair:
        """As nn.Conv2d's."""
        return self.geometry.stride

    @property
    def padding(self) -> Pair | str:
        """As nn.Conv2d's."""
        return self.geometry.padding

    @property
    def dilation(self) -> Pair:
        """As nn.Conv2d's."""
        return self.geometry.dilation

    @property
    def padding_mode(self) -> str:
        """As nn.Conv2d's."""
        return self.geometry.padding_mode


class TensorTrainLayer(FactorizedLayer):
    """A layer whose weight is the product of `cores` [r_{k-1}, m_k, n_k, r_k], k = 1 ... d, r_0 = r_d = 1.

    Args:
        input_dims: n_k.
        output_dims: m_k, as many.
        tt_rank: the largest TT-rank of r_1 ... r_{d-1}.
        ranks: one cap for each instead. Both are clipped to what the unfoldings support.
        device: of the cores, whose values are not set yet.
        dtype: the same.

    Raises:
        ValueError: `tt_rank` is below 1.
    """

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        tt_rank: int,
        ranks: Sequence[int] | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if tt_rank < 1:
            raise ValueError(f"expected tt_rank >= 1, got {tt_rank}")
        wanted = [tt_rank] * (len(input_dims) - 1) if ranks is None else ranks
        shapes = core_shapes(input_dims, output_dims, clip_ranks(wanted, input_dims, output_dims))
        self.cores = nn.ParameterList([torch.empty(shape, device=device, dtype=dtype) for shape in shapes])
        self._names = tuple(str(k) for k in range(len(shapes)))
        self._prepared = Prepared()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d - 1 TT-ranks (dimensions of the bonds between cores)."""
        return tuple(core.shape[0] for core in list(self.cores)[1:])

    @classmethod
    def _empty(cls, options: dict[str, Any], dtype: torch.dtype | None) -> Self:
        ranks = options.pop("ranks")  # which may be larger than those that the constructor clips
        layer = cls(**options, tt_rank=1, device="meta", dtype=dtype)
        modes = [core.shape[2] for core in layer.cores], [core.shape[1] for core in layer.cores]
        shapes = core_shapes(*modes, ranks)
        layer.cores = nn.ParameterList([torch.empty(shape, device="meta", dtype=dtype) for shape in shapes])
        return layer

    def _held(self) -> tuple[list[Any], Any]:
        """The cores and the bias, without the look-ups of attributes where there is nothing to be looked up."""
        held: Any = self._modules["cores"]._parameters  # pyright: ignore[reportOptionalMemberAccess]
        try:
            return [held[name] for name in self._names], self._parameters["bias"]
        except KeyError:  # what is parametrized is read by attribute
            return list(self.cores), self.bias

    @property
    def inference_bytes(self) -> int:
        """Memory that inference keeps beyond the parameters: what is merged or folded, if anything."""
        return self._prepared.num_bytes

    def round(
        self,
        rank: int | None = None,
        *,
        ranks: Sequence[int] | None = None,
        tolerance: float | None = None,
        metric: Metric | None = None,
    ) -> Self:
        """A layer of fewer ranks for nearly the same weight, see `round_cores`.

        Args:
            rank: the largest TT-rank.
            ranks: one for each.
            tolerance: the largest relative error, in place of ranks.
            metric: in which the error counts, of the weight [M, N] as a matrix, see `round_in_metric`.

        Raises:
            ValueError: neither ranks nor a tolerance, both, or a tolerance in a metric.
        """
        if rank is not None and ranks is None:
            ranks = [rank] * (len(self.cores) - 1)
        return self._with(
            balance(round_in_metric(list(self.cores), metric, ranks=ranks, tolerance=tolerance))
        )

    def orthogonalize(self, center: int = 0) -> Self:
        """A layer of the same weight, cores left of `center` left-orthogonal and those right of it right-orthogonal."""
        return self._with(orthogonalize([core.detach() for core in self.cores], center))

    def balance(self) -> Self:
        """A layer of the same weight whose cores share each cut's singular values evenly: see `balance`."""
        return self._with(balance(list(self.cores)))

    def clear_prepared(self) -> None:
        """Forget what inference keeps."""
        self._prepared.clear()

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; what inference keeps is dropped on the way to training."""
        if mode:
            self._prepared.clear()
        return super().train(mode)

    def _with(self, cores: Sequence[Tensor]) -> Self:
        """This layer with other cores."""
        return self._from(cores).train(self.training)

    @abstractmethod
    def _from(self, cores: Sequence[Tensor]) -> Self:
        """A new layer of the same sizes and options that holds these cores."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._prepared.clear()
        # to(memory_format=torch.channels_last) means images and kernels; a core in that order is copied at each call
        return super()._apply(lambda tensor: fn(tensor).contiguous(), recurse)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
