"""Quantized tensors as values, their integers truly packed: 2, 3, 4, 8 bits each, ternary five to a byte.

Bits are packed in one little-endian stream: integer i occupies the bits i * b ... (i + 1) * b - 1, bit j of
the stream being bit j % 8 of byte j // 8; what is stored is q - low, so that it is not negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compresskd.quant.granularity import Granularity
from compresskd.quant.grid import Grid, dequantize, quantize, spread
from compresskd.quant.scale import find_scale

_TOGETHER = 40 * 2**15  # integers that are worked on at once: whole bytes, of any number of bits
_POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Integers with what they mean.

    Args:
        integers: int8, in the shape of the tensor.
        scale: [S] float16.
        zero_point: [S] int8 on the affine grid, else None.
        grid: the integers that are allowed.
        granularity: which elements share a scale.

    Raises:
        ValueError: shapes that do not fit, or integers outside the grid.
        TypeError: integers that are not int8, or scales that are not float16.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None
    grid: Grid
    granularity: Granularity

    def __post_init__(self) -> None:
        if self.integers.dtype != torch.int8 or self.scale.dtype != torch.float16:
            raise TypeError(
                f"QuantizedTensor: expected int8 integers and float16 scales, got {self.integers.dtype} and "
                f"{self.scale.dtype}"
            )
        spread(self.scale, self.zero_point, self.grid, self.granularity, self.integers.shape)
        outside = (self.integers < self.grid.low) | (self.integers > self.grid.high)
        if outside.any():
            raise ValueError(
                f"QuantizedTensor: {int(outside.sum())} integers lie outside the range of {self.grid}, "
                f"{self.grid.low}..{self.grid.high}"
            )

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that it stands for."""
        return self.integers.shape

    def dequantize(self) -> Tensor:
        """The values, float32."""
        return dequantize(self.integers, self.scale, self.zero_point, self.grid, self.granularity)

    def num_bytes(self) -> int:
        """Exactly what `to_bytes` takes."""
        return payload_bytes(self.shape, self.grid, self.granularity)

    def to_bytes(self) -> bytes:
        """Packed integers, then float16 scales (little-endian), then packed zero points."""
        scales = self.scale.cpu().numpy().astype("<f2").tobytes()
        zero_points = b"" if self.zero_point is None else pack(self.zero_point, self.grid)
        return pack(self.integers, self.grid) + scales + zero_points

    @classmethod
    def from_bytes(
        cls, data: bytes, shape: Sequence[int], grid: Grid, granularity: Granularity
    ) -> "QuantizedTensor":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: the number of bytes is not that of this shape, grid and granularity, or what they hold
                lies outside the grid.
        """
        expected = payload_bytes(shape, grid, granularity)
        if len(data) != expected:
            raise ValueError(f"a tensor {tuple(shape)} on {grid} takes {expected} bytes, got {len(data)}")
        num_scales = granularity.num_scales(shape)
        end = grid.packed_bytes(prod(shape))
        integers = unpack(data[:end], prod(shape), grid).reshape(tuple(shape))
        scale = torch.from_numpy(np.frombuffer(data, "<f2", num_scales, end).astype(np.float16))
        rest = data[end + 2 * num_scales :]
        return cls(
            integers,
            scale,
            unpack(rest, num_scales, grid) if grid.has_zero_point else None,
            grid,
            granularity,
        )


def quantize_tensor(
    w: Tensor, grid: Grid, granularity: Granularity, *, method: str = "mse"
) -> QuantizedTensor:
    """Round to nearest at the scale that `method` (`mse` or `absmax`) finds."""
    scale, zero_point = find_scale(w, grid, granularity, method)
    integers = quantize(w.detach(), scale, zero_point, grid, granularity)
    return QuantizedTensor(integers, scale, zero_point, grid, granularity)


def payload_bytes(shape: Sequence[int], grid: Grid, granularity: Granularity) -> int:
    """Packed integers, 2 bytes for every scale, on the affine grid zero points packed like the integers."""
    num_scales = granularity.num_scales(shape)
    zero_points = grid.packed_bytes(num_scales) if grid.has_zero_point else 0
    return grid.packed_bytes(prod(shape)) + 2 * num_scales + zero_points


def pack(integers: Tensor, grid: Grid) -> bytes:
    """`grid.packed_bytes(n)` bytes of n integers of the grid, in storage order."""
    flat = integers.detach().cpu().reshape(-1)
    return b"".join(_pack(part.numpy(), grid).tobytes() for part in flat.split(_TOGETHER))


def _pack(integers: NDArray[np.int8], grid: Grid) -> NDArray[np.uint8]:
    codes = (integers.astype(np.int16) - grid.low).astype(np.uint8)
    if grid.kind == "ternary":
        padded = np.pad(codes, (0, -len(codes) % 5)).reshape(-1, 5)
        return (padded * _POWERS_OF_THREE).sum(axis=1, dtype=np.uint8)
    if 8 % grid.bits == 0:
        per_byte = 8 // grid.bits
        padded = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
        packed = padded[:, 0].copy()
        for place in range(1, per_byte):
            packed |= padded[:, place] << (place * grid.bits)
        return packed
    bits = (codes[:, None] >> np.arange(grid.bits, dtype=np.uint8)) & 1
    return np.packbits(bits.reshape(-1), bitorder="little")


def unpack(data: bytes | memoryview, count: int, grid: Grid) -> Tensor:
    """`count` integers (int8, one dimension) of what `pack` wrote.

    Raises:
        ValueError: too many or too few bytes, or a byte that no five ternary digits give.
    """
    if len(data) != grid.packed_bytes(count):
        raise ValueError(f"{count} integers on {grid} take {grid.packed_bytes(count)} bytes, got {len(data)}")
    packed, integers = np.frombuffer(data, np.uint8), np.empty(count, np.int8)
    for start in range(0, count, _TOGETHER):
        stop = min(start + _TOGETHER, count)
        part = packed[grid.packed_bytes(start) : grid.packed_bytes(stop)]
        integers[start:stop] = _unpack(part, stop - start, grid).astype(np.int16) + grid.low
    return torch.from_numpy(integers)


def _unpack(packed: NDArray[np.uint8], count: int, grid: Grid) -> NDArray[np.uint8]:
    if grid.kind == "ternary":
        if (packed >= 3**5).any():
            raise ValueError("packed ternary integers: a byte above 242 stands for no five digits")
        return (packed[:, None] // _POWERS_OF_THREE % 3).reshape(-1)[:count]
    if 8 % grid.bits == 0:
        codes = np.empty((len(packed), 8 // grid.bits), np.uint8)
        for place in range(codes.shape[1]):
            codes[:, place] = packed >> (place * grid.bits) & (2**grid.bits - 1)
        return codes.reshape(-1)[:count]
    bits = np.unpackbits(packed, count=count * grid.bits, bitorder="little").reshape(count, grid.bits)
    return (bits << np.arange(grid.bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
