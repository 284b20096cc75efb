import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresskd.tt import TTLinear, candidates
from compresskd.tt.decompose import svd
from compresskd.tt.decompose.cores import to_matrix
from compresskd.tt.decompose.tt_svd import interleave, tt_svd


@st.composite
def problems(draw):
    d = draw(st.integers(1, 4))
    dims = st.lists(st.integers(1, 6), min_size=d, max_size=d)
    input_dims, output_dims = draw(dims), draw(dims)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    M = max(1, math.prod(output_dims) - draw(st.integers(0, 2)))
    N = max(1, math.prod(input_dims) - draw(st.integers(0, 2)))
    return torch.randn(M, N, generator=generator, dtype=torch.float64), input_dims, output_dims


def unfolding_tail(weight, input_dims, output_dims, k, rank):
    tensor = interleave(weight, input_dims, output_dims)
    rows = math.prod(output_dims[:k]) * math.prod(input_dims[:k])
    return torch.linalg.svdvals(tensor.reshape(rows, -1))[rank:].square().sum()


def cut(cores, weight):
    return to_matrix(cores)[: weight.shape[0], : weight.shape[1]]


@given(problems())
@settings(max_examples=40, deadline=None)
def test_full_rank_is_exact(problem):
    weight, input_dims, output_dims = problem
    result = tt_svd(weight, input_dims, output_dims)
    assert torch.allclose(cut(result.cores, weight), weight, rtol=0, atol=1e-10)
    assert result.error < 1e-7


@given(problems(), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_error_is_within_the_bound_of_the_unfoldings(problem, rank):
    weight, input_dims, output_dims = problem
    d = len(input_dims)
    result = tt_svd(weight, input_dims, output_dims, ranks=[rank] * (d - 1))
    tails = [unfolding_tail(weight, input_dims, output_dims, k, result.ranks[k - 1]) for k in range(1, d)]
    error = (cut(result.cores, weight) - weight).norm()
    assert error <= math.sqrt(sum(tails)) * (1 + 1e-9) + 1e-10
    assert error <= result.error * weight.norm() * (1 + 1e-6) + 1e-7
    assert all(r <= rank for r in result.ranks)


@pytest.mark.slow
@given(problems(), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_tolerance_is_kept(problem, tolerance):
    weight, input_dims, output_dims = problem
    result = tt_svd(weight, input_dims, output_dims, tolerance=tolerance)
    assert (cut(result.cores, weight) - weight).norm() <= tolerance * weight.norm() * (1 + 1e-9)


@pytest.mark.parametrize("ranks", [(3, 4), (5, 2), (9, 9)])
def test_agrees_with_tensorly(ranks):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorly
        from tensorly.decomposition import tensor_train_matrix

    input_dims, output_dims = (4, 5, 6), (6, 5, 4)
    weight = torch.randn(120, 120, dtype=torch.float64)
    tensor = weight.reshape(*output_dims, *input_dims).numpy()
    with tensorly.backend_context("numpy", local_threadsafe=True):
        theirs = tensor_train_matrix(tensor, rank=[1, *ranks, 1])
        dense = torch.from_numpy(theirs.to_matrix())
    ours = to_matrix(tt_svd(weight, input_dims, output_dims, ranks=ranks).cores)
    assert float((ours - dense).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_dtype(dtype):
    weight = torch.randn(12, 15).to(dtype)
    result = tt_svd(weight, (3, 5), (4, 3))
    assert all(core.dtype == dtype for core in result.cores)
    assert (cut(result.cores, weight).double() - weight.double()).norm() < max(
        1e-12, 60 * torch.finfo(dtype).eps
    )


def test_zero_and_rank_one_matrices_have_rank_one():
    zero = tt_svd(torch.zeros(8, 9), (3, 3), (4, 2), ranks=(5,))
    assert zero.ranks == (1,)
    assert zero.error == 0.0
    assert float(to_matrix(zero.cores).abs().max()) == 0.0
    u, v = torch.randn(8, 1), torch.randn(1, 9)
    one = tt_svd(u @ v, (1, 9), (8, 1), ranks=(5,))
    assert one.ranks == (1,)
    assert torch.allclose(to_matrix(one.cores), u @ v, atol=1e-5)


def test_one_by_one():
    weight = torch.tensor([[3.0]])
    assert to_matrix(tt_svd(weight, (1, 1), (1, 1)).cores).item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("input_dims", "output_dims", "message"),
    [
        ((3, 4), (12,), "as many input modes as output modes"),
        ((3, 3), (4, 3), "product is at least 12; got .3, 3., product 9"),
        ((0, 20), (4, 3), "at least 1"),
    ],
)
def test_modes_that_do_not_fit_are_refused(input_dims, output_dims, message):
    with pytest.raises(ValueError, match=message):
        tt_svd(torch.zeros(12, 12), input_dims, output_dims)


def decaying(a, b, power=1.0):
    U = torch.linalg.qr(torch.randn(a, min(a, b), dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(b, min(a, b), dtype=torch.float64)).Q
    return (U * torch.arange(1, min(a, b) + 1.0, dtype=torch.float64) ** -power) @ V.T


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (200, 700), (700, 200), (640, 640)])
@pytest.mark.parametrize("rank", [1, 7, 30])
def test_every_route_finds_the_best_projection(shape, rank):
    matrix = decaying(*shape)
    values = torch.linalg.svdvals(matrix)
    part = svd.split(matrix, rank=rank)
    error = float((matrix - part.left @ part.right).norm())
    assert part.left.shape[1] == rank
    assert torch.allclose(part.left.T @ part.left, torch.eye(rank, dtype=torch.float64), atol=1e-10)
    assert error == pytest.approx(float(values[rank:].norm()), rel=2e-3)
    assert part.discarded == pytest.approx(error**2, rel=1e-6, abs=1e-12)


def test_split_to_a_tolerance_on_a_large_square():
    matrix = decaying(600, 600)
    allowed = 0.01 * float(matrix.square().sum())
    part = svd.split(matrix, discard=allowed)
    assert (matrix - part.left @ part.right).square().sum() <= allowed * (1 + 1e-9)
    best = int((matrix.square().sum() - torch.linalg.svdvals(matrix).square().cumsum(0) > allowed).sum()) + 1
    assert best <= part.left.shape[1] <= best + 2


def test_spectrum_estimates_leading_values():
    matrix = decaying(600, 600)
    exact = torch.linalg.svdvals(matrix).square()
    assert torch.allclose(svd.spectrum(matrix), exact, atol=1e-12)
    assert torch.allclose(svd.spectrum(matrix, num_values=20), exact[:20], rtol=2e-2)


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_errors_of_padded_modes_are_over_the_real_entries(rank):
    layer = TTLinear((5, 6), (5, 8), rank, in_features=29, out_features=37, dtype=torch.float64, bias=False)
    weight = layer.to_dense().detach()
    found = tt_svd(weight, (5, 6), (5, 8), ranks=(rank,))
    real = float((to_matrix(found.cores)[:37, :29] - weight).norm() / weight.norm())
    assert found.error == pytest.approx(real, rel=1e-9)
    dense = nn.Linear(29, 37, bias=False, dtype=torch.float64)
    dense.weight.data = weight
    measured = [c for c in candidates(dense, rank=rank) if c.decomposition is not None]
    assert any(math.prod(c.modes.sizes) > 29 * 37 for c in measured)  # padding is no reason to look away
    for c in measured:
        real = float((to_matrix(c.decomposition.cores)[:37, :29] - weight).norm() / weight.norm())
        assert c.error == pytest.approx(real, rel=1e-9)
