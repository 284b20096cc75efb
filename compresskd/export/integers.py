"""A quantized tensor as ONNX's DequantizeLinear reads it: (integer - zero point) * scale, the integers INT4 or INT8.

Integers of 4 bits and fewer are INT4, others INT8. A half-integer grid is stored as 2q + 1 with half the scale where
that fits the type, else as q, with half a scale added to what is read. All of it is exact: every product has fewer
bits than a float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import ml_dtypes
import numpy as np
import torch

from compresskd.quant.granularity import PerGroup, PerTensor
from compresskd.quant.pack import QuantizedTensor

Array = np.ndarray
Transform = Callable[[Array], Array]  # a transposition or another shape
_LARGEST = {"int4": 7, "int8": 127}


@dataclass(frozen=True)
class Integers:
    """What DequantizeLinear reads, and what is added then.

    Attributes:
        values: int4 (of ml_dtypes) or int8.
        scale: float32; a scalar, or [S] along `axis`.
        zero_point: as the scale, in the type of the values; None where it is 0 and nobody asks.
        axis: along which every index has a scale of its own; None where there is one scale.
        offset: half a scale, broadcasting against the values, where the half integers are not in the values.
    """

    values: Array
    scale: Array
    zero_point: Array | None
    axis: int | None
    offset: Array | None

    def read(self) -> Array:
        """The values, float32, as the operators of the graph compute them."""
        shape = [1] * self.values.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        zero = 0.0 if self.zero_point is None else self.zero_point.astype(np.float32).reshape(shape)
        read = (self.values.astype(np.float32) - np.float32(zero)) * self.scale.reshape(shape)
        return read if self.offset is None else read + self.offset


def integers_of(
    quantized: QuantizedTensor, transforms: Sequence[Transform] = (), *, as_int8: bool = False
) -> Integers | None:
    """The tensor after transpositions and changes of shape, which are done on the integers.

    Args:
        quantized: with one scale for all, or for each index of one dimension.
        transforms: done one after the other.
        as_int8: INT8 whatever the bits, for kernels that know no other integers.

    Returns:
        None where the scales do not lie along one dimension after the transforms.
    """
    shape = quantized.integers.shape
    values = _apply(transforms, quantized.integers.numpy())
    if isinstance(quantized.granularity, PerTensor):
        zero = None if quantized.zero_point is None else quantized.zero_point.numpy().reshape(())
        return _made(quantized, values, quantized.scale.float().numpy().reshape(()), zero, None, as_int8)

    def spread(per_scale: torch.Tensor) -> Array:
        wide = quantized.granularity.expand(per_scale, shape).expand(shape)
        return _apply(transforms, wide.numpy())

    wide_scale = spread(quantized.scale.float())
    wide_zero = None if quantized.zero_point is None else spread(quantized.zero_point.float())
    for axis in range(values.ndim):
        if all(_varies_only_along(wide, axis) for wide in (wide_scale, wide_zero) if wide is not None):
            zero = None if wide_zero is None else _along(wide_zero, axis)
            return _made(quantized, values, _along(wide_scale, axis), zero, axis, as_int8)
    return None


def groups_of(quantized: QuantizedTensor) -> Integers:
    """A tensor with a scale for each group of consecutive elements, as [groups, size], the last one filled up."""
    assert isinstance(quantized.granularity, PerGroup)
    size = quantized.granularity.size
    flat = quantized.integers.numpy().reshape(-1)
    values = np.pad(flat, (0, -flat.size % size)).reshape(-1, size)
    zero = None if quantized.zero_point is None else quantized.zero_point.numpy()
    return _made(quantized, values, quantized.scale.float().numpy(), zero, 0, False)


def _made(
    quantized: QuantizedTensor,
    values: Array,
    scale: Array,
    zero_point: Array | None,
    axis: int | None,
    as_int8: bool,
) -> Integers:
    kind = "int4" if quantized.grid.bits <= 4 and not as_int8 else "int8"
    dtype = np.dtype(ml_dtypes.int4 if kind == "int4" else np.int8)
    offset = None
    if quantized.grid.shift:
        if 2 * quantized.grid.high + 1 <= _LARGEST[kind]:
            values, scale = 2 * values + 1, scale / 2
        else:
            offset = scale / 2
            if axis is not None:
                offset = offset.reshape([-1 if d == axis else 1 for d in range(values.ndim)])
    if zero_point is None and as_int8:
        zero_point = np.zeros(scale.shape)  # onnxruntime takes no weight into an integer kernel without
    zero = None if zero_point is None else zero_point.astype(np.int8).astype(dtype)
    return Integers(np.ascontiguousarray(values).astype(dtype), scale.astype(np.float32), zero, axis, offset)


def _apply(transforms: Sequence[Transform], array: Array) -> Array:
    return reduce(lambda value, transform: transform(value), transforms, array)


def _varies_only_along(array: Array, axis: int) -> bool:
    first = array[tuple(slice(None) if d == axis else slice(0, 1) for d in range(array.ndim))]
    return bool((array == first).all())


def _along(array: Array, axis: int) -> Array:
    return array[tuple(slice(None) if d == axis else 0 for d in range(array.ndim))]
