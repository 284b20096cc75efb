import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskd.tt.decompose.cores import (
    balance,
    clip_ranks,
    core_shapes,
    max_ranks,
    num_parameters,
    orthogonalize,
    round_cores,
    to_matrix,
)


def random_cores(input_dims, output_dims, ranks, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = core_shapes(input_dims, output_dims, ranks)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@st.composite
def trains(draw):
    d = draw(st.integers(1, 4))
    dims = st.lists(st.integers(1, 5), min_size=d, max_size=d)
    input_dims, output_dims = draw(dims), draw(dims)
    ranks = draw(st.lists(st.integers(1, 6), min_size=d - 1, max_size=d - 1))
    return random_cores(input_dims, output_dims, ranks, draw(st.integers(0, 99)))


def entry(cores, row, column):
    """One entry of the matrix by the definition: the product of one slice of each core."""
    product = torch.ones(1, 1, dtype=cores[0].dtype)
    slices = []
    for core in reversed(cores):
        row, i = divmod(row, core.shape[1])
        column, j = divmod(column, core.shape[2])
        slices.append(core[:, i, j, :])
    for matrix in reversed(slices):
        product = product @ matrix
    return product.item()


@given(trains(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_to_matrix_is_the_product_of_slices(cores, place):
    matrix = to_matrix(cores)
    row, column = place % matrix.shape[0], place % matrix.shape[1]
    assert matrix[row, column].item() == pytest.approx(entry(cores, row, column), rel=1e-10, abs=1e-10)


@given(trains())
@settings(max_examples=40, deadline=None)
def test_gauges_keep_the_matrix(cores):
    matrix, scale = to_matrix(cores), to_matrix(cores).abs().max()
    for center in range(len(cores)):
        moved = orthogonalize(cores, center)
        assert torch.allclose(to_matrix(moved), matrix, rtol=0, atol=1e-11 * scale)
        for k, core in enumerate(moved):
            r, m, n, s = core.shape
            if k < center:
                left = core.reshape(r * m * n, s)
                assert torch.allclose(left.T @ left, torch.eye(s, dtype=torch.float64), atol=1e-11)
            elif k > center:
                right = core.reshape(r, m * n * s)
                assert torch.allclose(right @ right.T, torch.eye(r, dtype=torch.float64), atol=1e-11)
    assert torch.allclose(to_matrix(balance(cores)), matrix, rtol=0, atol=1e-11 * scale)


def test_balance_shares_singular_values_evenly():
    cores = balance([100.0 * random_cores((3, 4), (5, 2), (3,))[0], random_cores((3, 4), (5, 2), (3,))[1]])
    left = cores[0].reshape(15, 3)
    right = cores[1].reshape(3, 8)
    assert torch.allclose(left.T @ left, right @ right.T, atol=1e-9)
    assert float((left.T @ left - torch.diag(torch.diagonal(left.T @ left))).abs().max()) < 1e-9


@given(trains(), st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_rounding_keeps_its_tolerance(cores, tolerance):
    rounded = round_cores(cores, tolerance=tolerance)
    matrix = to_matrix(cores)
    assert (to_matrix(rounded) - matrix).norm() <= tolerance * matrix.norm() * (1 + 1e-9)
    assert all(a.shape[0] <= b.shape[0] for a, b in zip(rounded, cores, strict=True))


def test_rounding_undoes_inflated_ranks_exactly():
    cores = random_cores((4, 5, 3), (3, 4, 5), (2, 3))
    doubled = [
        torch.cat([cores[0], cores[0]], 3) / 2,
        torch.cat([torch.cat([cores[1], 0 * cores[1]], 3), torch.cat([0 * cores[1], cores[1]], 3)], 0),
        torch.cat([cores[2], cores[2]], 0),
    ]
    rounded = round_cores(doubled, tolerance=1e-8)
    assert [core.shape[0] for core in rounded] == [1, 2, 3]
    assert torch.allclose(to_matrix(rounded), to_matrix(cores), atol=1e-10)


def test_rounding_to_ranks_equals_tt_svd_of_the_matrix():
    from compresskd.tt.decompose.tt_svd import tt_svd

    cores = random_cores((4, 4, 4), (4, 4, 4), (9, 9))
    rounded = round_cores(cores, ranks=(3, 4))
    direct = tt_svd(to_matrix(cores), (4, 4, 4), (4, 4, 4), ranks=(3, 4))
    assert torch.allclose(to_matrix(rounded), to_matrix(direct.cores), atol=1e-9)


def test_rounding_refuses_unclear_wishes():
    cores = random_cores((2, 2), (2, 2), (2,))
    with pytest.raises(ValueError, match="either ranks or tolerance"):
        round_cores(cores)
    with pytest.raises(ValueError, match="expected 1 ranks for 2 cores, got 2"):
        round_cores(cores, ranks=(1, 1))


def test_zero_cores_stay_zero():
    cores = [0 * core for core in random_cores((2, 3), (3, 2), (2,))]
    for result in (round_cores(cores, tolerance=0.1), balance(cores), orthogonalize(cores, 1)):
        assert float(to_matrix(result).abs().max()) == 0.0


def test_ranks_are_clipped_to_the_unfoldings():
    assert max_ranks((2, 2, 2), (3, 3, 3)) == (6, 6)
    assert clip_ranks((100, 100), (2, 2, 2), (3, 3, 3)) == (6, 6)
    assert clip_ranks((1, 100), (2, 2, 2), (3, 3, 3)) == (1, 6)
    assert clip_ranks((2, 100, 100), (1, 1, 1, 9), (2, 2, 2, 1)) == (2, 4, 8)


def test_num_parameters_counts_every_core():
    cores = random_cores((2, 3, 4), (4, 3, 2), (5, 6))
    assert num_parameters((2, 3, 4), (4, 3, 2), (5, 6)) == sum(math.prod(core.shape) for core in cores)
