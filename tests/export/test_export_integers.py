"""Quantized tensors as DequantizeLinear reads them: bit for bit, whatever the grid, the scales and the layout."""

import numpy as np
import pytest
import torch

from compresskd.export.integers import groups_of, integers_of
from compresskd.quant.granularity import PerChannel, PerGroup, PerRankSlice, PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import quantize_tensor

GRIDS = [Grid(bits, kind) for bits in (2, 3, 4, 8) for kind in ("symmetric", "affine", "half_integer")]
GRIDS.append(Grid(2, "ternary"))


@pytest.mark.parametrize("as_int8", [False, True])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerChannel(-1), PerRankSlice()], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_read_is_the_value_bit_for_bit(grid, granularity, as_int8):
    for seed in range(10):
        torch.manual_seed(seed)
        quantized = quantize_tensor(torch.randn(3, 4, 5, 2), grid, granularity)
        found = integers_of(quantized, as_int8=as_int8)
        assert found is not None
        assert found.values.dtype == np.dtype("int8" if as_int8 or grid.bits == 8 else "int4")
        np.testing.assert_array_equal(found.read(), quantized.dequantize().numpy())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bond", ["first", "last"])
def test_the_layout_of_a_contraction_is_made_on_the_integers(grid, bond):
    """A core [r, m, n, s] becomes the matrix [m s, r n]; a scale for each s is one for each row, for each r none."""
    quantized = quantize_tensor(torch.randn(3, 4, 5, 2), grid, PerRankSlice(bond))
    steps = [lambda core: core.transpose(1, 3, 0, 2), lambda core: core.reshape(8, 15)]
    found = integers_of(quantized, steps)
    expected = quantized.dequantize().numpy().transpose(1, 3, 0, 2).reshape(8, 15)
    assert found is not None
    assert found.axis == (1 if bond == "first" else 0)
    np.testing.assert_array_equal(found.read(), expected)


def test_scales_that_no_dimension_has_are_told():
    quantized = quantize_tensor(torch.randn(4, 6), Grid(4), PerChannel())
    assert integers_of(quantized, [lambda w: w.reshape(2, 12)]) is None


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", [4, 7, 200])
def test_groups_are_rows(grid, size):
    quantized = quantize_tensor(torch.randn(5, 9), grid, PerGroup(size))
    read = groups_of(quantized).read().reshape(-1)[:45].reshape(5, 9)
    np.testing.assert_array_equal(read, quantized.dequantize().numpy())
