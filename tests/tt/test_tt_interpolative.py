"""A low-rank linear layer without the square of its rank."""

import pytest
import torch
from torch import nn

from compresskd import tt


def spectrum(M, N):
    """A layer whose singular values fall."""
    torch.manual_seed(0)
    layer = nn.Linear(N, M)
    U, _, V = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    layer.weight.data = (U * 0.9 ** torch.arange(min(M, N))) @ V
    return layer


@pytest.mark.parametrize(("M", "N"), [(40, 24), (24, 40), (32, 32)])
def test_it_is_the_svd_in_fewer_parameters(M, N):
    layer = spectrum(M, N)
    made = tt.factorize(layer, rank=9, method="interpolative")
    assert isinstance(made, tt.InterpolativeLinear)
    assert made.num_parameters == 9 * (M + N - 9) + M
    svd = tt.factorize(layer, rank=9, method="svd")
    torch.testing.assert_close(made.to_dense(), svd.to_dense(), rtol=1e-4, atol=1e-5)
    x = torch.randn(3, 5, N)
    torch.testing.assert_close(made(x), nn.functional.linear(x, made.to_dense(), made.bias))
    assert all(factor.abs().max() < 10 for factor in made.factors)


def test_every_rank_below_the_full_one_is_smaller_than_dense():
    layer = spectrum(32, 32)
    assert isinstance(tt.factorize(layer, rank=31, method="svd"), tt.Skipped)
    made = tt.factorize(layer, rank=31, method="interpolative")
    assert made.num_parameters - 32 == 32 * 32 - 1
    assert isinstance(tt.factorize(layer, rank=32, method="interpolative"), tt.Skipped)


@pytest.mark.parametrize("wish", [{"tolerance": 0.4}, {"energy": 0.8}, {"num_parameters": 700}])
def test_every_target_takes_the_parameters_that_it_needs(wish):
    layer = spectrum(40, 24)
    made, svd = (tt.factorize(layer, method=method, **wish) for method in ("interpolative", "svd"))
    if "num_parameters" in wish:
        assert made.num_parameters - 40 <= 700
        assert made.ranks > svd.ranks
    else:
        assert made.ranks == svd.ranks


def test_the_curve_is_what_layers_take_and_lose():
    layer = spectrum(40, 24)
    points = tt.error_curve(layer, method="interpolative", max_points=100)
    (smallest,) = tt.smallest_forms(layer, method="interpolative")
    assert points[0].num_parameters == smallest.num_parameters == 40 + 24 - 1
    for point in (points[0], points[len(points) // 2], points[-1]):
        made = tt.factorize(layer, ranks=point.ranks, modes=point.modes, method="interpolative")
        assert made.num_parameters - 40 == point.num_parameters < 40 * 24
        lost = float((made.to_dense() - layer.weight).detach().square().sum())
        assert lost == pytest.approx(point.squared_error, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("wish", [{"rank": 4}, {"ranks": [4]}, {"tolerance": 0.3}])
def test_it_is_rounded_as_a_tensor_train_is(wish):
    layer = spectrum(40, 24)
    before, svd = (tt.factorize(layer, rank=9, method=method) for method in ("interpolative", "svd"))
    made, expected = before.round(**wish), svd.round(**wish)
    assert made.ranks == expected.ranks < before.ranks
    torch.testing.assert_close(made.to_dense(), expected.to_dense(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.bias, layer.bias)


def test_other_layers_get_their_svd():
    assert isinstance(tt.factorize(nn.Conv2d(8, 8, 3), rank=3, method="interpolative"), tt.TTConv2d)
    assert isinstance(tt.factorize(nn.Embedding(40, 24), rank=3, method="interpolative"), tt.TTEmbedding)


def test_a_rank_out_of_range_is_refused():
    with pytest.raises(ValueError, match="between 1 and 24, got 25"):
        tt.InterpolativeLinear(24, 40, (25,))
