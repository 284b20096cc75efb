"""Integer grids, and the rounding of tensors onto them.

A weight is stored as an integer q in [low, high] and read as (q - zero_point + shift) * scale: `shift` is 1/2
on the half-integer grid and 0 elsewhere, zero points exist on the affine grid alone. S scales belong to a
tensor, as its granularity says; they are float16 wherever they are stored, and all arithmetic is float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskd.options import OptionError
from compresskd.quant.granularity import Granularity

BITS = (2, 3, 4, 8)
KINDS = ("symmetric", "affine", "half_integer", "ternary")
_TRITS_PER_BYTE = 5  # 3^5 = 243 states fit one byte


@dataclass(frozen=True)
class Grid:
    """The integers that a weight may take, and what they mean.

    `symmetric`: [-2^(b-1), 2^(b-1) - 1] around zero. `affine`: the same integers with a zero point of their
    own for every scale. `half_integer`: the levels -2^(b-1) + 1/2 ... 2^(b-1) - 1/2, no zero among them.
    `ternary`: -1, 0, 1 (bits must be 2; five of them are packed into a byte).

    Raises:
        OptionError: bits or kind that do not exist, or do not go together.
    """

    bits: int
    kind: str = "symmetric"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in BITS:
            raise OptionError("bits", self.bits, ", ".join(map(str, BITS)))
        if self.kind not in KINDS:
            raise OptionError("grid", self.kind, ", ".join(KINDS))
        if self.kind == "ternary" and self.bits != 2:
            raise OptionError(
                "grid", self.kind, f"another grid with bits={self.bits}; ternary weights have bits=2"
            )

    @property
    def low(self) -> int:
        """Smallest integer."""
        return -1 if self.kind == "ternary" else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer."""
        return 1 if self.kind == "ternary" else 2 ** (self.bits - 1) - 1

    @property
    def shift(self) -> float:
        """What is added to an integer before it is scaled."""
        return 0.5 if self.kind == "half_integer" else 0.0

    @property
    def num_levels(self) -> int:
        """How many integers there are."""
        return self.high - self.low + 1

    @property
    def has_zero_point(self) -> bool:
        """Whether a zero point goes with every scale."""
        return self.kind == "affine"

    def packed_bytes(self, count: int) -> int:
        """Bytes of `count` packed integers: ceil(count * bits / 8), for ternary ones ceil(count / 5)."""
        return (
            math.ceil(count / _TRITS_PER_BYTE) if self.kind == "ternary" else math.ceil(count * self.bits / 8)
        )


def round_to_grid(
    w: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, *, out: Tensor | None = None
) -> Tensor:
    """Integers in [low, high], as floats, of w; scale and zero_point broadcast against it, all float32.

    `out` takes every step of it, where one is given.
    """
    ratio = torch.mul(w, 1.0 / scale, out=out)
    rounded = torch.floor(ratio, out=out) if grid.shift else torch.round(ratio, out=out)
    if zero_point is not None:
        rounded = torch.add(rounded, zero_point, out=out)
    return torch.clamp(rounded, grid.low, grid.high, out=out)


def read_from_grid(
    integers: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, *, out: Tensor | None = None
) -> Tensor:
    """The values of integers (float32), everything broadcast; `out` as for `round_to_grid`."""
    if zero_point is None:
        levels = torch.add(integers, grid.shift, out=out)
    else:
        levels = torch.sub(integers, zero_point, out=out)
    return torch.mul(levels, scale, out=out)


def spread(
    scale: Tensor, zero_point: Tensor | None, grid: Grid, granularity: Granularity, shape: torch.Size
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point [S] as float32 tensors that broadcast against a tensor of this shape.

    Raises:
        ValueError: the number of scales or of zero points is not that of the granularity, or zero points
        where
            the grid has none, or none where it has them.
    """
    expected = granularity.num_scales(shape)
    if scale.shape != (expected,):
        raise ValueError(
            f"granularity: {granularity} of a tensor {tuple(shape)} has {expected} scales, "
            f"got a scale tensor of shape {tuple(scale.shape)}"
        )
    if (zero_point is not None) != grid.has_zero_point or (
        zero_point is not None and zero_point.shape != scale.shape
    ):
        wanted = f"zero points of shape ({expected},)" if grid.has_zero_point else "no zero points"
        came = "none" if zero_point is None else f"shape {tuple(zero_point.shape)}"
        raise ValueError(f"the {grid.kind} grid takes {wanted}, got {came}")
    offset = None if zero_point is None else granularity.expand(zero_point.float(), shape)
    return granularity.expand(scale.float(), shape), offset


def quantize(
    w: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, granularity: Granularity
) -> Tensor:
    """Integers (int8, the shape of w): clamp(round(w / scale) + zero_point, low, high), ties to even.

    On the half-integer grid floor(w / scale), whose cells are centred at the half integers.

    Args:
        w: any floating tensor; rounded in float32.
        scale: [S], rounded to float16 if it is not yet.
        zero_point: integers [S] for the affine grid, None otherwise.
        grid: the integers.
        granularity: which elements share a scale.

    Raises:
        ValueError: shapes that do not fit, see `spread`.
    """
    wide_scale, offset = spread(scale.half(), zero_point, grid, granularity, w.shape)
    return round_to_grid(w.float(), wide_scale, offset, grid).to(torch.int8)


def dequantize(
    integers: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, granularity: Granularity
) -> Tensor:
    """Values (float32) of integers as `quantize` returned them; same arguments, same errors."""
    wide_scale, offset = spread(scale.half(), zero_point, grid, granularity, integers.shape)
    return read_from_grid(integers.float(), wide_scale, offset, grid)


def fake_quantize(
    w: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    grid: Grid,
    granularity: Granularity,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """dequantize(quantize(w)) without the integers between, equal bit for bit; float32, no gradient.

    Args:
        out: float32 of the shape of `w`, which then holds the result and saves taking memory for each step.
    """
    wide_scale, offset = spread(scale.half(), zero_point, grid, granularity, w.shape)
    integers = round_to_grid(w.float(), wide_scale, offset, grid, out=out)
    return read_from_grid(integers, wide_scale, offset, grid, out=out)
