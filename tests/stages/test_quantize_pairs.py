"""Rounding tensor trains of two cores with errors fed back: the matrices of a low-rank weight, one after the other."""

import copy

import pytest
import torch
from torch import nn

from compresskd import tt
from compresskd.compression.calibration import LayerStatistics, input_rows
from compresskd.compression.precision_table import table_of
from compresskd.compression.start_quantized import feeds_back, start_quantized
from compresskd.quant.prepare import convert, prepare
from compresskd.stages import Quantization


def low_rank(num_outputs, num_inputs, rank):
    """A layer whose spectrum falls, so that a few columns of its factors hold most of it."""
    torch.manual_seed(0)
    dense = nn.Linear(num_inputs, num_outputs)
    with torch.no_grad():
        u, s, v = torch.linalg.svd(dense.weight, full_matrices=False)
        dense.weight.copy_(u * (s * torch.arange(1, len(s) + 1) ** -0.7) @ v)
    return tt.factorize(dense, rank=rank, method="svd")


@pytest.fixture
def large():
    return low_rank(160, 192, 48)  # its 16,896 numbers are too many for a learned gauge


@pytest.fixture
def layer():
    return low_rank(40, 48, 18)


def inputs_of(layer, count=600):
    generator, size = torch.Generator().manual_seed(1), layer.in_features
    return torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator)


def rounded(layer, x=None, *, bits=4, keep_integers=True, num_steps=300, **options):
    model = nn.Sequential(copy.deepcopy(layer))
    covariances = {} if x is None else {"0": x.T @ x / len(x)}
    start = start_quantized(
        model,
        Quantization(bits=bits, **options),
        keep_integers=keep_integers,
        covariances=covariances,
        seed=0,
        num_steps=num_steps,
    )
    return start, model


@torch.no_grad()
def error_of(model, layer, x):
    exact = layer.to_dense()
    return float((x @ (model[0].to_dense() - exact).T).norm() / (x @ exact.T).norm())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "rank_slice", 16])
def test_errors_of_a_large_layer_are_far_below_those_in_its_own_gauge(large, bits, granularity):
    options, x = {"bits": bits, "core_granularity": granularity}, inputs_of(large)
    _, nearest = rounded(large, x, core_start="nearest", **options)
    start, fed = rounded(large, x, rounding="gptq", **options)
    found = error_of(fed, large, x)
    assert found < 0.7 * error_of(nearest, large, x)
    assert start.errors["0"]["output_gptq"] == pytest.approx(found, rel=1e-3)
    assert found < start.errors["0"]["output_nearest"]
    assert start.errors["0"].keys() == {"nearest", "output_nearest", "output_gptq"}


@pytest.mark.parametrize("bits", [2, 4])
def test_a_small_layer_is_rounded_as_a_pair_or_in_its_gauge_whichever_is_better(layer, bits):
    x, options = inputs_of(layer), {"bits": bits, "rounding": "gptq", "core_granularity": 16}
    few = rounded(layer, x, core_start="gauge", num_steps=0, **options)
    many = rounded(layer, x, core_start="gauge_als", num_steps=20, **options)
    for start, model in (few, many):
        assert error_of(model, layer, x) <= start.errors["0"]["output_gptq"] * 1.001
        assert {"gauge", "output_gptq", "output_nearest"} < start.errors["0"].keys()
    assert error_of(few[1], layer, x) == pytest.approx(few[0].errors["0"]["output_gptq"], rel=1e-3)
    assert error_of(many[1], layer, x) < 0.9 * error_of(few[1], layer, x)


def test_without_inputs_the_mixed_matrices_are_rounded_to_the_nearest(large):
    x = torch.eye(192)
    _, plain = rounded(large, core_start="nearest", core_granularity=16)
    start, mixed = rounded(large, rounding="gptq", core_granularity=16)
    error = error_of(mixed, large, x)
    assert error < 1.05 * error_of(plain, large, x)
    assert start.errors["0"] == {"nearest": pytest.approx(error, rel=1e-3)}


@pytest.mark.parametrize("keep_integers", [True, False])
def test_what_is_stored_and_what_training_starts_from_are_these_integers(large, keep_integers):
    options = {"bits": 3, "rounding": "gptq", "core_granularity": 16}
    start, model = rounded(large, inputs_of(large), keep_integers=keep_integers, **options)
    prepare(model, Quantization(**options).spec(), start=start.tensors)
    stored = convert(model)
    assert [tensor.integers.shape for tensor in start.tensors.values()] == [
        (1, 160, 1, 48),
        (48, 1, 192, 1),
    ]
    for name, tensor in start.tensors.items():
        assert torch.equal(stored[name].integers, tensor.integers)


def test_kernels_are_pairs_whose_first_core_has_the_inputs():
    torch.manual_seed(0)
    layer = tt.factorize(nn.Conv2d(32, 64, 3, padding=1), rank=48, method="svd")
    assert [tuple(core.shape) for core in layer.cores] == [(1, 1, 288, 48), (48, 64, 1, 1)]
    x = torch.einsum("bihw,io->bohw", torch.randn(40, 32, 8, 8), torch.randn(32, 32))
    rows = input_rows(layer, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = layer(x)
        nearest, fed = (
            (rounded(layer, rows, rounding=way, core_start="nearest")[1][0](x) - exact).norm()
            for way in ("nearest", "gptq")
        )
    assert feeds_back(layer)
    assert fed < 0.8 * nearest


@pytest.mark.parametrize(
    "other",
    [
        tt.TTLinear([4, 12], [5, 8], tt_rank=4),  # two cores, of which each has inputs and outputs
        tt.TTLinear([6, 8], [5, 8], tt_rank=4),
        tt.TTLinear([4, 4, 3], [5, 4, 2], tt_rank=4),
        tt.TTEmbedding(40, 48, [40, 1], [1, 48], 4),
    ],
)
def test_other_trains_keep_their_gauge(other):
    assert not feeds_back(other)
    start, model = rounded(other, rounding="gptq", num_steps=10)
    plain, same = rounded(other, rounding="nearest", num_steps=10)
    assert start.errors == plain.errors
    for name, tensor in start.tensors.items():
        assert torch.equal(tensor.integers, plain.tensors[name].integers)
    assert torch.equal(next(model.parameters()), next(same.parameters()))


def test_a_lower_rank_counts_by_other_samples_than_those_that_choose_it(layer):
    inputs = inputs_of(layer)
    model, quantization = nn.Sequential(layer), Quantization(bits=4, budget=1000, rounding="gptq")
    few, many = (
        {"0": LayerStatistics(rows.T @ rows / len(rows), sensitivity=1.0)} for rows in (inputs[:30], inputs)
    )

    def lower(apart):
        sizes = table_of(model, {"0": ("0",)}, few, apart, quantization, coded=False)["0"]
        return {
            (size.form.bits, tuple(size.form.layer.ranks)): size.error for size in sizes if size.form.layer
        }

    flattered, counted = lower({}), lower(many)
    assert flattered.keys() == counted.keys()
    assert len(counted) == 24
    assert all(counted[form] > 1.1 * flattered[form] for form in counted)
