import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from compresskd.tt import (
    CPConv2d,
    CPLinear,
    Skipped,
    TTConv2d,
    TTEmbedding,
    TTLinear,
    TuckerLinear,
    candidates,
    error_curve,
    factorize,
    from_structure,
)
from compresskd.tt.decompose.modes import conv_modes, factorizations, linear_modes, nearest_factors, svd_modes


def smooth_linear(num_inputs, num_outputs, power=1.0, dtype=torch.float32):
    """A layer whose weight has a decaying spectrum, as trained ones do."""
    layer = nn.Linear(num_inputs, num_outputs, dtype=dtype)
    U = torch.linalg.qr(torch.randn(num_outputs, min(num_inputs, num_outputs))).Q
    V = torch.linalg.qr(torch.randn(num_inputs, min(num_inputs, num_outputs))).Q
    with torch.no_grad():
        layer.weight.copy_((U * torch.arange(1, U.shape[1] + 1.0) ** -power) @ V.T)
    return layer


def relative_error(layer, dense):
    return float((layer.to_dense() - dense.weight).detach().norm() / dense.weight.detach().norm())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_search_is_never_worse_than_svd_at_equal_parameters(power, share):
    dense = smooth_linear(96, 80, power)
    budget = int(share * dense.weight.numel())
    searched = factorize(dense, num_parameters=budget)
    plain = factorize(dense, num_parameters=budget, method="svd")
    assert searched.num_parameters <= budget + 80
    assert relative_error(searched, dense) <= relative_error(plain, dense) * (1 + 1e-6)


def test_search_finds_the_train_that_made_the_weight():
    truth = TTLinear((2, 4, 8), (8, 4, 2), 3, bias=False)
    dense = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        dense.weight.copy_(truth.to_dense())
    found = candidates(dense, num_parameters=400)
    assert found[0].error < 1e-3
    assert relative_error(factorize(dense, num_parameters=400), dense) < 1e-3
    assert relative_error(factorize(dense, num_parameters=400, method="svd"), dense) > 0.1


def test_every_candidate_reports_modes_ranks_parameters_and_error():
    dense = smooth_linear(127, 60)
    found = candidates(dense, num_parameters=2000)
    assert len(found) > 4
    for candidate in found:
        assert math.prod(candidate.modes.input_dims) >= 127
        assert math.prod(candidate.modes.output_dims) >= 60
        assert candidate.num_parameters < dense.weight.numel()
        assert 0.0 <= candidate.error <= 1.0
        assert str(candidate.modes)
    assert any(candidate.modes.sizes == (60, 127) for candidate in found if candidate.decomposition)


@pytest.mark.parametrize("layer", ["linear", "conv", "embedding"])
@pytest.mark.parametrize("method", ["tensor_train", "svd"])
def test_wishes_are_kept(layer, method):
    dense = {
        "linear": lambda: smooth_linear(120, 84),
        "conv": lambda: nn.Conv2d(24, 32, 3),
        "embedding": lambda: nn.Embedding(300, 48),
    }[layer]()
    bias = 0 if getattr(dense, "bias", None) is None else dense.bias.numel()
    ranked = factorize(dense, rank=5, method=method)
    assert max(ranked.ranks) <= 5
    for wish in (0.8, 0.6):
        exact = factorize(dense, tolerance=wish, method=method)
        assert relative_error(exact, dense) <= wish + 1e-6
        energetic = factorize(dense, energy=1 - wish**2, method=method)
        assert relative_error(energetic, dense) <= wish + 1e-6
    budget = dense.weight.numel() // 3
    sized = factorize(dense, num_parameters=budget, method=method)
    assert 0.8 * budget <= sized.num_parameters - bias <= budget


def test_break_even_layers_stay_dense_and_say_so():
    assert factorize(nn.Linear(84, 10), rank=16) == Skipped(
        "break-even: 940 parameters at rank 10, 840 dense"
    )
    assert isinstance(factorize(nn.Linear(1, 1), rank=4), Skipped)
    assert isinstance(factorize(nn.Linear(50, 50), tolerance=0.0), Skipped)
    assert isinstance(factorize(nn.Conv2d(1, 1, 1), rank=1), Skipped)
    assert "10 parameters, the smallest form has" in factorize(nn.Linear(30, 30), num_parameters=10).reason


def test_forms_that_do_not_exist_stay_dense_and_say_so():
    assert "groups=2" in factorize(nn.Conv2d(4, 4, 3, groups=2), rank=2).reason
    assert "max_norm" in factorize(nn.Embedding(100, 20, max_norm=1.0), rank=2).reason


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "exactly one of rank, ranks, tolerance, energy, num_parameters; got none"),
        ({"rank": 3, "tolerance": 0.1}, "exactly one of"),
        ({"rank": 0}, "rank >= 1, got 0"),
        ({"tolerance": 1.5}, "0 <= tolerance < 1, got 1.5"),
        ({"energy": 0.0}, "0 < energy <= 1, got 0.0"),
        ({"num_parameters": 0}, "num_parameters >= 1, got 0"),
        ({"ranks": (3,)}, "modes together with ranks"),
        ({"ranks": (3, 3), "modes": ((4, 5), (5, 8))}, "expected 1 ranks for the 2 cores"),
        ({"rank": 3, "modes": ((2, 3), (4, 5))}, "product is at least 20"),
        ({"rank": 3, "method": "wavelet"}, "tensor_train, svd, interpolative, tucker, cp; got 'wavelet'"),
        ({"rank": 3, "num_cores": 7}, "num_cores between 1 and 4, got 7"),
        ({"rank": 3, "method": "cp", "input_covariance": torch.eye(20)}, "use tensor_train or svd"),
    ],
)
def test_bad_wishes_are_refused(wish, message):
    with pytest.raises(ValueError, match=message):
        factorize(nn.Linear(20, 40), **wish)


def test_broken_weights_and_foreign_modules_are_refused():
    dense = nn.Linear(20, 40)
    with torch.no_grad():
        dense.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match="finite weights"):
        factorize(dense, rank=2)
    with pytest.raises(TypeError, match=r"nn\.Embedding, got LayerNorm"):
        factorize(nn.LayerNorm(4), rank=2)


def test_zero_and_rank_one_weights_shrink_to_rank_one():
    dense = nn.Linear(30, 40)
    with torch.no_grad():
        dense.weight.zero_()
    zero = factorize(dense, rank=8)
    assert set(zero.ranks) == {1}
    assert float(zero.to_dense().detach().abs().max()) == 0.0
    with torch.no_grad():
        dense.weight.copy_(torch.randn(40, 1) @ torch.randn(1, 30))
    assert set(factorize(dense, rank=8).ranks) == {1}
    assert relative_error(factorize(dense, tolerance=0.01), dense) < 0.01


def test_mode_of_training_and_dtype_are_kept():
    dense = smooth_linear(40, 60, dtype=torch.float64).eval()
    layer = factorize(dense, rank=4)
    assert not layer.training
    assert layer.cores[0].dtype == torch.float64
    assert torch.equal(layer.bias, dense.bias)
    half = factorize(smooth_linear(40, 60).bfloat16(), rank=4)
    assert half.cores[0].dtype == torch.bfloat16


def test_explicit_modes_and_number_of_cores():
    dense = smooth_linear(64, 64)
    assert factorize(dense, rank=4, modes=((2, 4, 8), (8, 4, 2))).input_dims == (2, 4, 8)
    assert len(factorize(dense, rank=4, num_cores=3).cores) == 3
    conv = nn.Conv2d(16, 16, 3)
    assert factorize(conv, rank=4, modes=((1, 1), (3, 3), (1, 1))).stages == ((1, 1), (3, 3), (1, 1))
    with pytest.raises(ValueError, match="make a 3x3 kernel"):
        factorize(conv, rank=4, modes=((1, 1), (5, 5), (1, 1)))


@pytest.mark.parametrize("dense", [nn.Linear(60, 48), nn.Conv2d(12, 16, 3), nn.Embedding(200, 24)])
def test_curves_are_convex_and_realised(dense):
    points = error_curve(dense)
    counts = [point.num_parameters for point in points]
    errors = [point.squared_error for point in points]
    assert counts == sorted(set(counts))
    assert errors == sorted(errors, reverse=True)
    assert counts[-1] < dense.weight.numel()
    slopes = [(errors[i] - errors[i + 1]) / (counts[i + 1] - counts[i]) for i in range(len(points) - 1)]
    assert all(a >= b - 1e-9 for a, b in pairwise(slopes))
    for point in points[:: max(1, len(points) // 4)]:
        layer = factorize(dense, ranks=point.ranks, modes=point.modes)
        assert (
            layer.num_parameters - (layer.num_parameters_dense - dense.weight.numel()) == point.num_parameters
        )
        assert relative_error(layer, dense) <= point.error + 1e-5
        assert point.squared_error == pytest.approx(
            point.error**2 * float(dense.weight.detach().square().sum()), rel=1e-4
        )


@pytest.mark.parametrize("wish", [{"rank": 4}, {"tolerance": 0.8}, {"energy": 0.4}, {"num_parameters": 500}])
@pytest.mark.parametrize("method", ["tucker", "cp"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_tucker_and_cp(kind, method, wish):
    dense = smooth_linear(60, 48, 0.3) if kind == "linear" else nn.Conv2d(12, 16, 3, padding=1, stride=2)
    expected_class = {
        ("linear", "tucker"): TuckerLinear,
        ("linear", "cp"): CPLinear,
        ("conv", "tucker"): TTConv2d,
        ("conv", "cp"): CPConv2d,
    }[kind, method]
    layer = factorize(dense, method=method, **wish)
    assert isinstance(layer, expected_class)
    assert torch.equal(layer.bias, dense.bias)
    if "rank" in wish:
        assert max(layer.ranks) == 4
    if "num_parameters" in wish:
        assert layer.num_parameters <= 500 + layer.bias.numel()
    if "tolerance" in wish:
        assert relative_error(layer, dense) <= 0.8
    x = torch.randn(3, 60) if kind == "linear" else torch.randn(3, 12, 7, 7)
    weight = layer.to_dense()
    if kind == "linear":
        expected = nn.functional.linear(x, weight, layer.bias)
    else:
        expected = nn.functional.conv2d(x, weight, layer.bias, stride=2, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-4)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    empty = from_structure(layer.structure())
    empty.load_state_dict(layer.state_dict())
    assert torch.allclose(empty(x), layer(x), atol=1e-6)
    empty.reset_parameters()
    assert layer.num_parameters_dense == sum(p.numel() for p in dense.parameters())


def test_tucker_is_exact_at_full_rank():
    dense = nn.Linear(12, 20, dtype=torch.float64)
    from compresskd.tt.layers.tucker import tucker2_cores, tucker_linear

    assert relative_error(tucker_linear(dense, (3, 4), (4, 5), 99), dense) < 1e-10
    conv = nn.Conv2d(5, 6, 3, dtype=torch.float64)
    layer = TTConv2d.from_cores(tucker2_cores(conv.weight, 99), conv, ((1, 1), (3, 3), (1, 1)))
    assert relative_error(layer, conv) < 1e-10


def test_cp_recovers_a_sum_of_rank_one_terms():
    truth = CPConv2d(6, 7, (3, 3), 2, dtype=torch.float64)
    dense = nn.Conv2d(6, 7, 3, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(truth.to_dense())
    assert relative_error(factorize(dense, rank=2, method="cp"), dense) < 1e-3


@pytest.mark.parametrize("size", [1, 2, 7, 12, 60, 127, 768, 1009, 4096])
def test_modes_multiply_to_the_size_or_a_little_more(size):
    for pattern in ((0.0, 1.0), (0.5, 0.5), (1 / 6, 1 / 3, 1 / 2), (0.5, 1 / 3, 1 / 6), (0.1, 0.2, 0.3, 0.4)):
        factors = nearest_factors(size, pattern)
        assert size <= math.prod(factors) <= max(size + 1, 1.08 * size)
        rising = list(pattern) == sorted(pattern)
        assert list(factors) == sorted(factors, reverse=not rising)
    assert nearest_factors(4096, (1 / 6, 1 / 3, 1 / 2)) == (4, 16, 64)
    assert nearest_factors(127, (0.5, 0.5)) == (8, 16)


def test_factorizations_are_all_of_them():
    assert factorizations(12, 2) == ((1, 12), (2, 6), (3, 4))
    assert factorizations(8, 3) == ((1, 1, 8), (1, 2, 4), (2, 2, 2))


def test_the_first_candidate_is_the_low_rank_svd():
    assert linear_modes(30, 40)[0].sizes == (40, 30)
    assert linear_modes(30, 40, num_cores=2)[0].sizes == (40, 30)
    assert str(conv_modes(3, 4, (3, 3))[0]) == "3x3-1x1"
    assert len(conv_modes(3, 4, (3, 3))) == 7
    assert len(conv_modes(3, 4, (1, 1))) == 1


def test_embedding_of_an_awkward_vocabulary():
    dense = nn.Embedding(1009, 30)
    layer = factorize(dense, num_parameters=9000)
    assert isinstance(layer, TTEmbedding)
    assert layer(torch.tensor([0, 1008])).shape == (2, 30)


def test_an_embedding_of_a_rank_loses_no_more_than_the_svd_of_that_rank():
    table = nn.Embedding(1000, 32)
    often = torch.arange(1, 1001, dtype=torch.float32).rsqrt()  # the root of Zipf's law
    options = {"rank": 8, "output_covariance": often / often.sum()}
    best, *others = candidates(table, **options)
    svd = next(c for c in [best, *others] if c.modes == svd_modes(32, 1000))
    assert best.error <= svd.error
    (smallest,) = candidates(table, **options, num_cores=4)[:1]  # asked for, it is given
    assert smallest.num_parameters < svd.num_parameters / 3
    assert smallest.error > svd.error
