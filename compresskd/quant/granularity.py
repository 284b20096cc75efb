"""Which elements of a tensor share one scale: small frozen values with four operations each.

S is the number of scales. Every granularity can count the scales of a shape (`num_scales`), spread values [S]
so that they broadcast against the tensor (`expand`), and reduce a tensor to [S] (`amax`, `total`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.options import OptionError


class Granularity(Protocol):
    """What the four values below have in common."""

    def num_scales(self, shape: Sequence[int]) -> int:
        """S for a tensor of this shape. Raises: ValueError if the granularity does not fit the shape."""
        ...

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values [S] in a form that broadcasts against a tensor of this shape."""
        ...

    def amax(self, tensor: Tensor) -> Tensor:
        """Largest element of each block, [S]."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Sum of the elements of each block, [S]."""
        ...

    def plain(self) -> list[str | int]:
        """Name and option as plain values, for a manifest; `granularity_from_plain` reads them."""
        ...


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def num_scales(self, shape: Sequence[int]) -> int:
        """Always 1."""
        return 1

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """[1], which broadcasts by itself."""
        return values

    def amax(self, tensor: Tensor) -> Tensor:
        """[1]."""
        return tensor.amax().reshape(1)

    def total(self, tensor: Tensor) -> Tensor:
        """[1]."""
        return tensor.sum().reshape(1)

    def plain(self) -> list[str | int]:
        """["per_tensor"]."""
        return ["per_tensor"]


@dataclass(frozen=True)
class PerChannel:
    """One scale for every index along `dim`: 0 is the output of Linear and Conv2d, the row of Embedding."""

    dim: int = 0

    def num_scales(self, shape: Sequence[int]) -> int:
        """The size of `dim`."""
        return shape[_dim_of(self, self.dim, shape)]

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """[1, ..., S, ..., 1]."""
        return _expand_along(values, _dim_of(self, self.dim, shape), len(shape))

    def amax(self, tensor: Tensor) -> Tensor:
        """[S]."""
        return _amax_along(tensor, _dim_of(self, self.dim, tensor.shape))

    def total(self, tensor: Tensor) -> Tensor:
        """[S]."""
        return _total_along(tensor, _dim_of(self, self.dim, tensor.shape))

    def plain(self) -> list[str | int]:
        """["per_channel", dim]."""
        return ["per_channel", self.dim]


@dataclass(frozen=True)
class PerRankSlice:
    """One scale for every index of the `last` or the `first` TT-rank of a core [r_{k-1}, m_k, n_k, r_k].

    Raises:
        OptionError: `side` is neither, or the tensor is no core (it has not four dimensions).
    """

    side: str = "last"

    def __post_init__(self) -> None:
        if self.side not in ("first", "last"):
            raise OptionError("side", self.side, "first, last")

    def num_scales(self, shape: Sequence[int]) -> int:
        """The TT-rank."""
        return shape[self._dim(shape)]

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """[S, 1, 1, 1] or [1, 1, 1, S]."""
        return _expand_along(values, self._dim(shape), len(shape))

    def amax(self, tensor: Tensor) -> Tensor:
        """[S]."""
        return _amax_along(tensor, self._dim(tensor.shape))

    def total(self, tensor: Tensor) -> Tensor:
        """[S]."""
        return _total_along(tensor, self._dim(tensor.shape))

    def plain(self) -> list[str | int]:
        """["per_rank_slice", side]."""
        return ["per_rank_slice", self.side]

    def _dim(self, shape: Sequence[int]) -> int:
        if len(shape) != 4:
            raise ValueError(
                "granularity: PerRankSlice needs a tensor-train core [r, m, n, r'], got the shape "
                f"{tuple(shape)}; write PerChannel(dim=0) for the weights of ordinary layers"
            )
        return 0 if self.side == "first" else 3


@dataclass(frozen=True)
class PerGroup:
    """One scale for every `size` consecutive elements in storage order; the last group may be shorter.

    Raises:
        ValueError: `size` is below 1.
    """

    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise OptionError("size", self.size, ">= 1")

    def num_scales(self, shape: Sequence[int]) -> int:
        """The number of elements divided by `size`, rounded up."""
        return -(-math.prod(shape) // self.size)

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """The full shape."""
        return values.repeat_interleave(self.size)[: math.prod(shape)].reshape(tuple(shape))

    def amax(self, tensor: Tensor) -> Tensor:
        """[S]."""
        return self._groups(tensor, -torch.inf).amax(dim=1)

    def total(self, tensor: Tensor) -> Tensor:
        """[S]."""
        return self._groups(tensor, 0.0).sum(dim=1)

    def plain(self) -> list[str | int]:
        """["per_group", size]."""
        return ["per_group", self.size]

    def _groups(self, tensor: Tensor, filler: float) -> Tensor:
        return F.pad(tensor.reshape(-1), (0, -tensor.numel() % self.size), value=filler).view(-1, self.size)


def granularity_from_plain(plain: Sequence[str | int]) -> Granularity:
    """The granularity that `plain()` described.

    Raises:
        ValueError: it describes none.
    """
    match list(plain):
        case ["per_tensor"]:
            return PerTensor()
        case ["per_channel", int(dim)]:
            return PerChannel(dim)
        case ["per_rank_slice", str(side)]:
            return PerRankSlice(side)
        case ["per_group", int(size)]:
            return PerGroup(size)
    expected = (
        "['per_tensor'], ['per_channel', dim], ['per_rank_slice', 'first'|'last'] or ['per_group', size]"
    )
    raise OptionError("granularity", plain, expected)


def _dim_of(granularity: object, dim: int, shape: Sequence[int]) -> int:
    if not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"granularity: {granularity} does not fit a tensor of shape {tuple(shape)}; "
            f"dim must be within {-len(shape)}..{len(shape) - 1}"
        )
    return dim % len(shape)


def _expand_along(values: Tensor, dim: int, num_dims: int) -> Tensor:
    return values.view([-1 if d == dim else 1 for d in range(num_dims)])


def _others(dim: int, num_dims: int) -> list[int]:
    return [d for d in range(num_dims) if d != dim]


# in both, an empty list of dimensions would mean all of them
def _amax_along(tensor: Tensor, dim: int) -> Tensor:
    return tensor.amax(dim=_others(dim, tensor.dim())) if tensor.dim() > 1 else tensor.clone()


def _total_along(tensor: Tensor, dim: int) -> Tensor:
    return tensor.sum(dim=_others(dim, tensor.dim())) if tensor.dim() > 1 else tensor.clone()
