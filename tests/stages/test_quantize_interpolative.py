"""Rounding interpolative forms: factors are matrices applied in turn, and rounded as weights of ordinary layers are."""

import copy

import pytest
import torch
from torch import nn

from compresskd import tt
from compresskd.compression.calibration import LayerStatistics
from compresskd.compression.precision_table import _dense, _Seen, _sizes
from compresskd.compression.start_quantized import start_quantized
from compresskd.quant.feedback import fit_second
from compresskd.quant.granularity import PerChannel
from compresskd.quant.grid import Grid
from compresskd.quant.pack import quantize_tensor
from compresskd.quant.prepare import convert, prepare
from compresskd.stages import Quantization


@pytest.fixture
def model():
    torch.manual_seed(0)
    dense = nn.Linear(48, 40)
    with torch.no_grad():
        dense.weight[:3] *= 20.0  # rows of another size, for which one scale is too coarse
    return nn.Sequential(tt.factorize(dense, rank=24, method="interpolative"))


def rounded(model, covariance=None, **options):
    model = copy.deepcopy(model)
    covariances = {} if covariance is None else {"0": covariance}
    start = start_quantized(
        model, Quantization(bits=4, **options), keep_integers=True, covariances=covariances, seed=0
    )
    return start, model[0].to_dense().detach()


def test_each_row_has_a_scale_or_each_group(model):
    for granularity, counts in (("channel", (24, 16)), (16, (72, 24)), ("tensor", (1, 1))):
        start, _ = rounded(model, granularity=granularity)
        assert tuple(len(tensor.scale) for tensor in start.tensors.values()) == counts


def test_errors_are_fed_back_and_the_second_factor_makes_up_for_the_first(model):
    x = torch.randn(500, 48) @ torch.randn(48, 48)
    covariance = x.T @ x / 500
    exact = model[0].to_dense().detach()

    def error(dense):
        return float((x @ (dense - exact).T).norm() / (x @ exact.T).norm())

    nearest, dense = rounded(model)
    fed, dense_fed = rounded(model, covariance, rounding="gptq")
    assert error(dense_fed) < 0.7 * error(dense)
    assert fed.errors["0"]["output_nearest"] == pytest.approx(error(dense), rel=1e-3)
    assert fed.errors["0"]["output_gptq"] == pytest.approx(error(dense_fed), rel=1e-3)
    assert fed.errors["0"]["nearest"] == nearest.errors["0"]["nearest"]


def test_the_second_matrix_is_the_best_after_what_has_become_of_the_first():
    torch.manual_seed(0)
    x, a, b = torch.randn(400, 20) @ torch.randn(20, 20), torch.randn(12, 20), torch.randn(9, 12)
    first = quantize_tensor(a, Grid(3, "symmetric"), PerChannel())
    best, seen = fit_second([a, b], first.dequantize(), x.T @ x / 400)
    inputs, outputs = x @ first.dequantize().T, x @ a.T @ b.T
    torch.testing.assert_close(seen.float(), inputs.T @ inputs / 400, rtol=1e-4, atol=1e-3)
    exact = torch.linalg.lstsq(inputs, outputs).solution.T

    def error(matrix):
        return float((inputs @ matrix.T - outputs).norm())

    assert error(exact) <= error(best) < 1.02 * error(exact) < 0.95 * error(b)


def test_training_starts_from_what_rounds_to_these_integers(model):
    x = torch.randn(500, 48)
    quantization = Quantization(bits=3, rounding="gptq")
    start = start_quantized(
        model, quantization, keep_integers=False, covariances={"0": x.T @ x / 500}, seed=0
    )
    prepare(model, quantization.spec(), start=start.tensors)
    stored = convert(model)
    assert len(start.tensors) == 2
    for name, tensor in start.tensors.items():
        assert torch.equal(stored[name].integers, tensor.integers)


class TestTable:
    """What the table of a budget says of ranks and bits, where errors are fed back in rounding."""

    x = torch.randn(600, 48, generator=torch.Generator().manual_seed(1)) @ torch.randn(
        48, 48, generator=torch.Generator().manual_seed(2)
    )

    def table(self, layer, scale=1.0, **options):
        quantization = Quantization(bits=2, budget=1000, granularity=16, **options)
        found = LayerStatistics(scale * self.x.T @ self.x / len(self.x), sensitivity=1.0)
        seen = _Seen.of({"0": (layer, found)}, _dense(layer).shape, quantization)
        return seen, list(
            _sizes(layer, _dense(layer), (2, 3, 4, 8), quantization, seen, seen, ("0",), coded=False)
        )

    def test_every_error_is_near_that_of_rounding_with_errors_fed_back(self, model):
        (layer,) = model
        seen, sizes = self.table(layer, rounding="gptq")
        _, nearest = self.table(layer)
        assert len(sizes) == len(nearest) == 28
        exact = _dense(layer)
        for size, plain in zip(sizes, nearest, strict=True):
            lower = nn.Sequential(copy.deepcopy(size.form.layer or layer))
            start_quantized(
                lower,
                Quantization(bits=size.form.bits, granularity=16, rounding="gptq"),
                keep_integers=True,
                covariances={"0": seen.covariance},
                seed=0,
            )
            real = seen.error(exact, _dense(lower[0]))
            if size.form.layer is None:
                assert size.error == pytest.approx(real, rel=1e-4)
                assert size.error < (0.75 if size.form.bits > 2 else 0.9) * plain.error
            else:
                assert size.error == pytest.approx(real, rel=0.2)
            assert size.error < plain.error
            assert size.cost == plain.cost

    def test_lower_ranks_are_cut_where_inputs_are_small(self, model):
        (layer,) = model
        seen, sizes = self.table(layer)
        exact = _dense(layer)
        for size in sizes:
            if size.form.layer is not None:
                plain = layer.round(ranks=size.form.layer.ranks)
                cut, blind = (seen.error(exact, _dense(each)) for each in (size.form.layer, plain))
                assert cut < blind

    def test_a_layer_whose_inputs_are_all_zero_has_forms_of_every_rank(self, model):
        (layer,) = model
        _, sizes = self.table(layer, scale=0.0, rounding="gptq")
        assert all(size.error == 0.0 for size in sizes)
        for size in sizes:
            if size.form.layer is not None:
                plain = layer.round(ranks=size.form.layer.ranks)
                torch.testing.assert_close(size.form.layer.to_dense(), plain.to_dense())
