import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresskd.tt import factorize
from compresskd.tt.decompose.cores import round_cores, to_matrix
from compresskd.tt.decompose.metric import Metric, Weighed, check_covariance, root
from compresskd.tt.decompose.tt_svd import tt_svd
from compresskd.tt.decompose.whitening import _kronecker, mode_covariances, round_in_metric, tt_svd_whitened


def covariance_of(size, seed, rank=None):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(4 * size, rank or size, generator=generator, dtype=torch.float64)
    mix = torch.randn(rank or size, size, generator=generator, dtype=torch.float64)
    x = samples @ (mix * torch.logspace(0, -2, size, dtype=torch.float64))
    return x.T @ x / len(x)


@st.composite
def problems(draw):
    d = draw(st.integers(2, 3))
    dims = st.lists(st.integers(1, 5), min_size=d, max_size=d)
    input_dims, output_dims = draw(dims), draw(dims)
    seed = draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    M, N = torch.tensor(output_dims).prod().item(), torch.tensor(input_dims).prod().item()
    weight = torch.randn(M, N, generator=generator, dtype=torch.float64)
    return weight, input_dims, output_dims, covariance_of(N, seed, draw(st.sampled_from([None, 1, 3])))


@given(problems(), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_never_worse_than_plain_tt_svd_of_the_same_ranks(problem, rank):
    weight, input_dims, output_dims, covariance = problem
    ranks = [rank] * (len(input_dims) - 1)
    plain = tt_svd(weight, input_dims, output_dims, ranks=ranks)
    aware = tt_svd_whitened(Weighed(weight, Metric(covariance)), input_dims, output_dims, ranks)
    error = Metric(covariance).error(weight, to_matrix(aware.cores))
    assert error <= Metric(covariance).error(weight, to_matrix(plain.cores)) + 1e-12
    assert error == pytest.approx(aware.error, abs=1e-9)
    assert aware.ranks == plain.ranks


@pytest.mark.slow
@given(problems(), st.integers(1, 4), st.booleans())
@settings(max_examples=50, deadline=None)
def test_never_worse_than_plain_tt_svd_in_a_metric_of_both_sides(problem, rank, is_diagonal):
    weight, input_dims, output_dims, covariance = problem
    outputs = covariance_of(len(weight), 7)
    metric = Metric(covariance, outputs.diagonal() if is_diagonal else outputs)
    ranks = [rank] * (len(input_dims) - 1)
    plain = tt_svd(weight, input_dims, output_dims, ranks=ranks)
    aware = tt_svd_whitened(Weighed(weight, metric), input_dims, output_dims, ranks)
    error = metric.error(weight, to_matrix(aware.cores))
    assert error <= metric.error(weight, to_matrix(plain.cores)) + 1e-12
    assert error == pytest.approx(aware.error, abs=1e-9)


@pytest.mark.parametrize("size", [20, 600])
def test_two_cores_are_the_optimum_of_both_sides(size):
    weight, inputs, outputs = (
        torch.randn(12, size, dtype=torch.float64),
        covariance_of(size, 1),
        covariance_of(12, 2),
    )
    aware = tt_svd_whitened(Weighed(weight, Metric(inputs, outputs)), (1, size), (12, 1), (5,))
    left, right = (root(c, ridge=0.0 if len(c) < 600 else 1e-6).forward for c in (outputs, inputs))
    values = torch.linalg.svdvals(left.T @ weight @ right).square()
    assert aware.error == pytest.approx(float(values[5:].sum() / values.sum()) ** 0.5, rel=1e-2)


def test_descent_gains_where_modes_of_both_sides_are_split():
    weight, inputs, outputs = (
        torch.randn(64, 64, dtype=torch.float64),
        covariance_of(64, 3),
        covariance_of(64, 4),
    )
    metric, dims = Metric(inputs, outputs), ((4, 16), (16, 4))
    padded = metric.padded(64, 64)
    start = _kronecker(weight, *dims, (8,), padded)
    aware = tt_svd_whitened(Weighed(weight, metric), *dims, (8,))
    plain = tt_svd(weight, *dims, ranks=(8,))
    assert aware.error < 0.95 * metric.error(weight, to_matrix(start))
    assert aware.error < 0.8 * metric.error(weight, to_matrix(plain.cores))


def test_a_diagonal_is_its_matrix():
    weight, inputs = torch.randn(12, 20, dtype=torch.float64), covariance_of(20, 1)
    frequencies = torch.rand(12, dtype=torch.float64)
    vector, matrix = Metric(inputs, frequencies), Metric(inputs, torch.diag(frequencies))
    assert vector.cost(weight) == pytest.approx(matrix.cost(weight))
    assert torch.allclose(vector.whitened(weight), matrix.whitened(weight))
    assert torch.allclose(vector.applied(weight), matrix.applied(weight))
    for dims in (((1, 20), (12, 1)), ((4, 5), (4, 3))):
        errors = [tt_svd_whitened(Weighed(weight, metric), *dims, (3,)).error for metric in (vector, matrix)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_rows_of_an_embedding_that_are_asked_for_often_are_kept():
    table = nn.Embedding(50, 16, dtype=torch.float64)
    often = torch.full((50,), 1e-3)
    often[:5] = 1.0
    small = factorize(table, rank=5, method="svd", output_covariance=often).to_dense().detach()
    errors = (small - table.weight.detach()).norm(dim=1)
    assert errors[:5].max() < 0.1 * errors[5:].mean()


def test_two_cores_are_the_optimum_of_the_whitened_svd():
    weight, covariance = torch.randn(12, 20, dtype=torch.float64), covariance_of(20, 1)
    aware = tt_svd_whitened(Weighed(weight, Metric(covariance)), (1, 20), (12, 1), (5,))
    values = torch.linalg.svdvals(weight @ root(covariance, ridge=0.0).forward).square()
    assert aware.error == pytest.approx(float(values[5:].sum() / values.sum()) ** 0.5, rel=1e-3)


def test_output_error_is_what_samples_say():
    weight, approximation = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    x = torch.randn(500, 10, dtype=torch.float64) @ torch.randn(10, 10, dtype=torch.float64)
    measured = (x @ (weight - approximation).T).norm() / (x @ weight.T).norm()
    assert Metric(x.T @ x / 500).error(weight, approximation) == pytest.approx(float(measured), rel=1e-9)


def test_split_inputs_gain_clearly_on_correlated_inputs():
    weight, covariance = torch.randn(64, 64, dtype=torch.float64), covariance_of(64, 3)
    plain = tt_svd(weight, (4, 16), (16, 4), ranks=(8,))
    aware = tt_svd_whitened(Weighed(weight, Metric(covariance)), (4, 16), (16, 4), (8,))
    assert aware.error < 0.8 * Metric(covariance).error(weight, to_matrix(plain.cores))


def test_mode_covariances_of_a_kronecker_product_are_its_factors():
    first, second = covariance_of(3, 0), covariance_of(5, 1)
    parts = mode_covariances(torch.kron(first, second), (3, 5))
    assert torch.allclose(torch.kron(*parts), torch.kron(first, second), atol=1e-9)


@pytest.mark.parametrize("channels_only", [True, False])
def test_convolutions_take_the_covariance_of_patches_or_channels(channels_only):
    dense = nn.Conv2d(8, 12, 3, padding=1, bias=False, dtype=torch.float64)
    x = (
        torch.randn(20, 8, 6, 6, dtype=torch.float64)
        * torch.logspace(0, -2, 8, dtype=torch.float64)[:, None, None]
    )
    patches = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 72)
    channels = x.movedim(1, -1).reshape(-1, 8)
    given_covariance = (
        channels.T @ channels / len(channels) if channels_only else patches.T @ patches / len(patches)
    )
    aware = factorize(dense, num_parameters=300, input_covariance=given_covariance)
    plain = factorize(dense, num_parameters=300)
    expected = dense(x).detach()
    error = [float((layer(x).detach() - expected).norm() / expected.norm()) for layer in (aware, plain)]
    assert error[0] < 0.7 * error[1]


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.eye(5), r"expected input_covariance \[6, 6\], got \[5, 5\]"),
        (torch.full((6, 6), float("nan")), "got NaN or infinity"),
        (torch.zeros(6, 6), "not zero"),
        (-torch.eye(6), "positive semidefinite"),
    ],
)
def test_bad_covariances_are_refused(covariance, message):
    with pytest.raises(ValueError, match=message):
        check_covariance(covariance, 6)
    with pytest.raises(ValueError, match=message):
        factorize(nn.Linear(6, 20), rank=1, input_covariance=covariance)


@given(problems(), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_rounding_in_a_metric_is_never_worse_than_rounding(problem, rank):
    weight, input_dims, output_dims, covariance = problem
    metric, ranks = Metric(covariance, covariance_of(len(weight), 7)), [rank] * (len(input_dims) - 1)
    cores = tt_svd(weight, input_dims, output_dims, ranks=[5] * len(ranks)).cores
    exact, plain = to_matrix(cores), round_cores(cores, ranks=ranks)
    found = round_in_metric(cores, metric, ranks=ranks)
    assert [core.shape for core in found] == [core.shape for core in plain]
    slack = 1e-9 * metric.cost(exact) + 1e-12
    assert metric.cost(to_matrix(found) - exact) <= metric.cost(to_matrix(plain) - exact) + slack


def test_two_cores_are_rounded_to_the_optimum_of_the_metric():
    metric = Metric(covariance_of(20, 1), covariance_of(12, 2))
    cores = tt_svd(torch.randn(12, 20, dtype=torch.float64), (1, 20), (12, 1), ranks=(9,)).cores
    exact = to_matrix(cores)
    best = tt_svd_whitened(Weighed(exact, metric), (1, 20), (12, 1), (4,))
    found = round_in_metric(cores, metric, ranks=(4,))
    assert metric.error(exact, to_matrix(found)) == pytest.approx(best.error, rel=1e-6)
    assert best.error < 0.8 * metric.error(exact, to_matrix(round_cores(cores, ranks=(4,))))


def test_a_tolerance_in_a_metric_is_refused():
    cores = tt_svd(torch.randn(6, 8), (1, 8), (6, 1), ranks=(4,)).cores
    for options in ({"tolerance": 0.1}, {}, {"ranks": (2,), "tolerance": 0.1}):
        with pytest.raises(ValueError, match="expected ranks and no tolerance in a metric"):
            round_in_metric(cores, Metric(covariance_of(8, 1)), **options)


LAYERS = {
    "two cores": (lambda: nn.Linear(24, 20), {"method": "svd"}),
    "modes of both sides": (lambda: nn.Linear(24, 20), {"modes": ((4, 6), (5, 4))}),
    "interpolative": (lambda: nn.Linear(24, 20), {"method": "interpolative"}),
    "convolution": (lambda: nn.Conv2d(8, 20, 3), {}),
    "one-dimensional convolution": (lambda: nn.Conv1d(8, 20, 3), {}),
    "table": (lambda: nn.Embedding(50, 24), {"method": "svd"}),
    "padded vocabulary": (lambda: nn.Embedding(47, 24), {"modes": ((4, 6), (6, 8)), "keep_larger": True}),
    "groups of rows": (lambda: nn.Embedding(50, 24), {"row_groups": 2}),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_of_any_kind_is_rounded_in_a_metric(kind):
    torch.manual_seed(0)
    make, options = LAYERS[kind]
    dense = make()
    if options.get("row_groups"):
        options = {**options, "output_covariance": torch.linspace(1.0, 0.01, 50)}
    layer = factorize(dense, rank=6, **options)
    weight = layer.to_dense().detach().double().flatten(1)
    outputs = covariance_of(len(weight), 3)
    if isinstance(dense, nn.Embedding):
        outputs = torch.logspace(0, -3, len(weight), dtype=torch.float64)
    metric = Metric(covariance_of(weight.shape[1], 2), outputs)
    ranks = [max(1, r // 2) for r in layer.ranks]
    plain, aware = layer.round(ranks=ranks), layer.round(ranks=ranks, metric=metric)
    costs = [metric.cost(other.to_dense().detach().double().flatten(1) - weight) for other in (plain, aware)]
    assert aware.ranks == plain.ranks
    assert type(aware) is type(layer)
    assert costs[1] < (1.0 if "modes" in kind or "padded" in kind else 0.9) * costs[0] + 1e-12
