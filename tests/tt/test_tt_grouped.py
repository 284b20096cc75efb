"""A table whose rows are in groups of their own ranks."""

import copy
import itertools

import pytest
import torch
from torch import nn

from compresskd import tt
from compresskd.tt.decompose.metric import Metric
from compresskd.tt.decompose.row_groups import Table, groups_of


def table(rows=300, width=24, decay=0.5, **options):
    """An embedding of a falling spectrum."""
    layer = nn.Embedding(rows, width, **options)
    with torch.no_grad():
        scale = torch.arange(1, width + 1) ** -decay
        layer.weight.copy_(torch.randn(rows, width) * scale @ torch.linalg.qr(torch.randn(width, width))[0])
        if layer.padding_idx is not None:
            layer.weight[layer.padding_idx] = 0
    return layer


def zipf(rows):
    """How often each row is asked for, in a random order."""
    return (1 / torch.arange(1.0, rows + 1))[torch.randperm(rows)]


def cost(layer, found, frequency):
    with torch.no_grad():
        return float(((found.to_dense() - layer.weight).double().square().sum(1) * frequency).sum())


def test_groups_are_by_frequency_each_a_third_of_those_before_and_itself():
    frequency = zipf(270)
    group = groups_of(frequency, 4)
    assert group.bincount().tolist() == [10, 20, 60, 180]
    for k in range(3):
        assert frequency[group == k].min() >= frequency[group == k + 1].max()
    assert groups_of(torch.ones(2), 4).tolist() == [0, 0]


def test_full_ranks_are_exact_in_any_metric():
    layer, frequency = table(), zipf(300)
    x = torch.randn(100, 24)
    for inputs in (None, x.T @ x / 100):
        metric = Metric(None if inputs is None else inputs.double(), frequency.double())
        made = Table(layer.weight.detach(), groups_of(frequency, 3), metric)
        full = tuple(min(count, 24) for count in made.counts)
        found = tt.GroupedEmbedding.of_table(made, full, layer)
        assert torch.allclose(found.to_dense(), layer.weight, atol=1e-5)
        assert made.cost_of(full) == 0


def test_each_group_is_the_best_of_its_rank_by_how_often_rows_are_asked_for():
    layer, frequency = table(), zipf(300)
    made = Table(layer.weight.detach(), groups_of(frequency, 3), Metric(None, frequency.double()))
    ranks = (9, 5, 2)
    found = tt.GroupedEmbedding.of_table(made, ranks, layer)
    assert cost(layer, found, frequency) == pytest.approx(made.cost_of(ranks), rel=1e-4)
    for k, rank in enumerate(ranks):
        rows = made.group == k
        weighed = frequency[rows].sqrt()[:, None] * layer.weight.detach()[rows]
        best = torch.linalg.svdvals(weighed)[rank:].square().sum()
        error = frequency[rows].sqrt()[:, None] * (found.to_dense() - layer.weight).detach()[rows]
        assert float(error.square().sum()) == pytest.approx(float(best), rel=1e-4)


@pytest.mark.parametrize("target", [{"rank": 4}, {"num_parameters": 1500}])
def test_groups_lose_less_than_one_rank_of_as_many_parameters(target):
    layer, frequency = table(900), zipf(900)
    one = tt.factorize(layer, method="svd", output_covariance=frequency, **target)
    groups = tt.factorize(layer, row_groups=4, output_covariance=frequency, **target)
    assert isinstance(groups, tt.GroupedEmbedding)
    allowed = target.get("num_parameters", 4 * (900 + 24))
    assert groups.num_parameters <= allowed
    assert groups.num_parameters > 0.9 * allowed
    assert cost(layer, groups, frequency) < 0.8 * cost(layer, one, frequency)


def test_a_bound_on_the_error_is_kept():
    layer, frequency = table(), zipf(300)
    found = tt.factorize(layer, row_groups=3, output_covariance=frequency, tolerance=0.4)
    total = float((layer.weight.detach().double().square().sum(1) * frequency).sum())
    assert cost(layer, found, frequency) <= 0.16 * total * 1.001
    fewer = tt.factorize(layer, row_groups=3, output_covariance=frequency, tolerance=0.6)
    assert fewer.num_parameters < found.num_parameters


def test_a_curve_says_what_each_of_its_forms_takes_and_loses():
    layer, frequency = table(), zipf(300)
    options = {"row_groups": 3, "output_covariance": frequency}
    points = tt.error_curve(layer, max_points=20, **options)
    assert 2 < len(points) <= 20
    for before, after in itertools.pairwise(points):
        assert before.num_parameters < after.num_parameters
        assert before.squared_error > after.squared_error
    for point in points[::6]:
        found = tt.factorize(layer, ranks=point.ranks, modes=point.modes, **options)
        assert found.num_parameters == point.num_parameters
        assert cost(layer, found, frequency) == pytest.approx(point.squared_error, rel=1e-3)


@pytest.mark.parametrize("padding", [None, "zero", "kept"])
def test_rows_are_those_of_the_table(padding):
    layer = table(padding_idx=None if padding is None else 7)
    if padding == "kept":
        layer.weight.data[7] = 3.0
    found = tt.factorize(layer, rank=6, row_groups=4, output_covariance=zipf(300))
    ids = torch.randint(0, 300, (3, 40))
    ids[0, 0] = 7
    rows = found(ids)
    assert torch.allclose(rows, found.to_dense()[ids], atol=1e-6)
    if padding is not None:
        assert torch.equal(rows[0, 0], layer.weight[7])
    rows.sum().backward()
    assert all(factor.grad.abs().sum() > 0 for factor in found.factors)
    with pytest.raises(IndexError, match="expected ids from 0 to 299"):
        found(torch.tensor([300]))


def test_the_structure_and_the_state_make_it_again_and_rounding_lowers_ranks():
    layer, frequency = table(padding_idx=0), zipf(300)
    found = tt.factorize(layer, rank=6, row_groups=4, output_covariance=frequency)
    again = tt.from_structure(found.structure())
    again.load_state_dict(found.state_dict())
    ids = torch.randint(0, 300, (50,))
    assert torch.equal(again(ids), found(ids))
    lower = found.round(ranks=[max(1, r // 2) for r in found.ranks])
    assert lower.ranks == tuple(max(1, r // 2) for r in found.ranks)
    assert cost(layer, lower, frequency) > cost(layer, found, frequency)
    assert torch.allclose(found.round(ranks=found.ranks)(ids), found(ids), atol=1e-5)
    assert copy.deepcopy(found).round(3).ranks == tuple(min(3, r) for r in found.ranks)


def test_without_frequencies_or_with_sparse_gradients_a_table_stays_in_one_piece():
    assert isinstance(tt.factorize(table(), rank=2, row_groups=4), tt.TTEmbedding)
    sparse = table(sparse=True)
    assert isinstance(tt.factorize(sparse, rank=2, row_groups=4, output_covariance=zipf(300)), tt.TTEmbedding)


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": (10, 10), "ranks": (2, 2)},
        {"counts": (10, 20), "ranks": (11, 2)},
        {"counts": (30,), "ranks": (0,)},
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        tt.GroupedEmbedding(30, 16, **wrong)
