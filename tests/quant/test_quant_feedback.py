"""GPTQ: against its definition written out, and what it is worth on correlated inputs."""

import pytest
import torch
from torch import nn

from compresskd.quant import feedback
from compresskd.quant.feedback import round_with_errors_fed_back
from compresskd.quant.granularity import PerChannel, PerGroup, PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import quantize_tensor

OUT, IN = 6, 20


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def weight(generator):
    return torch.randn(OUT, IN, generator=generator)


@pytest.fixture
def covariance(generator):
    x = torch.randn(500, IN, generator=generator) @ torch.randn(IN, IN, generator=generator)
    return x.T @ x / len(x)


def error(w, tensor, covariance):
    rows = (w - tensor.dequantize()).double().flatten(1)
    return float(((rows @ covariance.double()) * rows).sum())


def by_definition(w, nearest, covariance):
    """Column by column: what is left of the problem is solved anew for the columns that are not rounded yet."""
    h = covariance.double()
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    w, scale = w.double().clone(), nearest.scale.double()[:, None]
    integers = torch.zeros_like(w)
    order = covariance.diagonal().argsort(descending=True, stable=True).tolist()
    for position, i in enumerate(order):
        integers[:, i] = (w[:, i] / scale[:, 0]).round().clamp(nearest.grid.low, nearest.grid.high)
        later = order[position + 1 :]
        rounding = w[:, i] - integers[:, i] * scale[:, 0]
        if later:
            w[:, later] += torch.outer(rounding, torch.linalg.solve(h[later][:, later], h[later, i]))
    return integers


@pytest.mark.parametrize("block", [4, 128])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_as_the_definition(bits, block, weight, covariance, monkeypatch):
    monkeypatch.setattr(feedback, "_BLOCK", block)
    nearest = quantize_tensor(weight, Grid(bits), PerChannel())
    found = round_with_errors_fed_back(nearest, weight, covariance)
    assert torch.equal(found.integers.double(), by_definition(weight, nearest, covariance))
    assert torch.equal(found.scale, nearest.scale)
    assert error(weight, found, covariance) < 0.8 * error(weight, nearest, covariance)


def test_inputs_that_are_independent_are_rounded_to_the_nearest(weight):
    nearest = quantize_tensor(weight, Grid(4), PerChannel())
    found = round_with_errors_fed_back(nearest, weight, torch.diag(torch.rand(IN) + 0.1))
    assert torch.equal(found.integers, nearest.integers)


@pytest.mark.parametrize("kind", ["symmetric", "affine", "half_integer"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(5)], ids=repr)
def test_every_grid_and_granularity(kind, granularity, weight, covariance):
    nearest = quantize_tensor(weight, Grid(3, kind), granularity)
    found = round_with_errors_fed_back(nearest, weight, covariance)
    assert error(weight, found, covariance) < error(weight, nearest, covariance)


def test_outputs_in_another_dimension_and_convolutions(weight, covariance):
    nearest = quantize_tensor(weight, Grid(3), PerChannel())
    found = round_with_errors_fed_back(nearest, weight, covariance)
    turned = quantize_tensor(weight.T.contiguous(), Grid(3), PerChannel(1))
    assert torch.equal(
        round_with_errors_fed_back(turned, weight.T, covariance, output_dim=1).integers, found.integers.T
    )
    kernel = weight.unflatten(1, (5, 2, 2))
    convolution = quantize_tensor(kernel, Grid(3), PerChannel())
    assert torch.equal(
        round_with_errors_fed_back(convolution, kernel, covariance).integers.flatten(1), found.integers
    )


def test_an_input_that_is_always_zero_is_no_fault(weight, covariance):
    covariance[3], covariance[:, 3] = 0, 0
    nearest = quantize_tensor(weight, Grid(4), PerChannel())
    found = round_with_errors_fed_back(nearest, weight, covariance)
    assert torch.equal(found.integers[:, 3], nearest.integers[:, 3])
    nothing = round_with_errors_fed_back(nearest, weight, torch.zeros(IN, IN))
    assert torch.equal(nothing.integers, nearest.integers)


@pytest.mark.parametrize(
    ("bad", "words"),
    [(torch.eye(IN + 1), "covariance"), (torch.full((IN, IN), torch.nan), "finite covariance")],
    ids=["size", "NaN"],
)
def test_what_is_no_covariance_is_refused(bad, words, weight):
    with pytest.raises(ValueError, match=words):
        round_with_errors_fed_back(quantize_tensor(weight, Grid(4), PerChannel()), weight, bad)


def test_it_is_what_the_layer_answers_that_is_nearer(generator):
    layer = nn.Linear(IN, OUT, bias=False)
    x = torch.randn(500, 3, generator=generator) @ torch.randn(3, IN, generator=generator)
    w = layer.weight.detach()
    nearest = quantize_tensor(w, Grid(3), PerChannel())
    found = round_with_errors_fed_back(nearest, w, x.T @ x / len(x))
    whole, plain, fed = (x @ v.T for v in (w, nearest.dequantize(), found.dequantize()))
    assert (fed - whole).norm() < 0.5 * (plain - whole).norm()
