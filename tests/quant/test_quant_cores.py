import math
import time

import pytest
import torch
from refusals import says

from compresskd.quant.als import refine
from compresskd.quant.cores import quantize_cores
from compresskd.quant.environments import (
    inner_product,
    left_environments,
    relative_error,
    right_environments,
    separable_covariance,
)
from compresskd.quant.gauge import balance, learn_gauge, mixing_matrix, rotate
from compresskd.quant.granularity import PerGroup, PerRankSlice, PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import quantize_tensor
from compresskd.quant.rounding import Lattice, Quadratic, descend, round_with_feedback

MODES = [(4, 4), (4, 7), (8, 8)]


def power_law_train(modes=MODES, rank=8, decay=1.0, seed=0):
    """Random cores whose bonds weigh their index by index^-decay, as trained or TT-SVD cores do."""
    generator = torch.Generator().manual_seed(seed)
    bonds = [1, *[rank] * (len(modes) - 1), 1]
    cores = []
    for k, (m, n) in enumerate(modes):
        core = torch.randn(bonds[k], m, n, bonds[k + 1], generator=generator)
        cores.append(core * torch.arange(1.0, bonds[k + 1] + 1) ** -decay)
    return cores


def dense(cores):
    merged = cores[0].double()
    for core in cores[1:]:
        merged = torch.einsum("amnb,bpqc->ampnqc", merged, core.double()).flatten(3, 4).flatten(1, 2)
    return merged[0, :, :, 0]


def values(tensors):
    return [tensor.dequantize() for tensor in tensors]


def test_environments_and_errors_equal_the_dense_matrix():
    a, b = power_law_train(seed=1), power_law_train(seed=2)
    expected = (dense(a) * dense(b)).sum()
    torch.testing.assert_close(inner_product([c.double() for c in a], [c.double() for c in b]), expected)
    left = left_environments(a, b)[-1]
    right = right_environments(a, b)[0]
    torch.testing.assert_close(left.trace(), right.trace(), rtol=1e-4, atol=1e-3)
    error = (dense(a) - dense(b)).norm() / dense(a).norm()
    assert relative_error(a, b) == pytest.approx(float(error), rel=1e-9)


def test_weighted_error_equals_that_of_the_outputs_for_a_separable_covariance():
    a, b = power_law_train(seed=1), power_law_train(seed=2)
    generator = torch.Generator().manual_seed(3)
    factors = []
    for _, n in MODES:
        x = torch.randn(n, 2 * n, generator=generator, dtype=torch.float64)
        factors.append(x @ x.T)
    c = torch.kron(torch.kron(factors[0], factors[1]), factors[2])
    d = dense(a) - dense(b)
    expected = ((d @ c * d).sum() / (dense(a) @ c * dense(a)).sum()).sqrt()
    assert relative_error(a, b, factors) == pytest.approx(float(expected), rel=1e-9)
    found = separable_covariance(c, [n for _, n in MODES])
    for factor, other in zip(found, factors, strict=True):
        scaled = other / other.diagonal().mean() + 0.01 * torch.eye(len(other))
        torch.testing.assert_close(factor, scaled, rtol=1e-6, atol=1e-6)


def test_covariance_of_fewer_inputs_is_padded_and_of_more_refused():
    assert [len(f) for f in separable_covariance(torch.eye(10), [3, 4])] == [3, 4]
    with pytest.raises(ValueError, match=r"at most 12 inputs \(modes \(3, 4\)\), got the shape \(13, 13\)"):
        separable_covariance(torch.eye(13), [3, 4])


@pytest.mark.parametrize("rank", [1, 3, 8, 20])
def test_balancing_keeps_the_product_and_the_shapes_also_of_bonds_that_are_too_wide(rank):
    cores = power_law_train(rank=rank)
    balanced = balance(cores)
    assert [c.shape for c in balanced] == [c.shape for c in cores]
    torch.testing.assert_close(dense(balanced), dense(cores), rtol=1e-9, atol=1e-9)
    for k in range(2):
        left, right = (
            left_environments(balanced, balanced)[k + 1],
            right_environments(balanced, balanced)[k + 1],
        )
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 6, 7, 16])
def test_mixing_matrices_are_orthogonal_and_flat(size):
    q = mixing_matrix(size, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q @ q.T, torch.eye(size, dtype=torch.float64))
    assert q.abs().max() <= math.sqrt(2 / size) + 1e-12
    assert not torch.equal(q, mixing_matrix(size, torch.Generator().manual_seed(3))) or size == 1


def test_rotation_keeps_the_product():
    cores = [core.double() for core in power_law_train()]
    gauge = [mixing_matrix(8, torch.Generator().manual_seed(k)) for k in range(2)]
    torch.testing.assert_close(dense(rotate(cores, gauge)), dense(cores), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_gauge_preserves_the_product_and_reaches_the_figure(bits):
    cores = power_law_train()
    plain = relative_error(cores, values([quantize_tensor(c, Grid(bits), PerTensor()) for c in cores]))
    found = learn_gauge(cores, Grid(bits), PerTensor(), num_steps=150)
    product = dense([core.float() for core in found.cores])
    assert (product - dense(cores)).norm() <= 1e-6 * dense(cores).norm()
    assert relative_error(cores, values(found.tensors)) <= 0.75 * plain
    start = learn_gauge(cores, Grid(bits), PerTensor(), num_steps=0)
    assert relative_error(cores, values(found.tensors)) < relative_error(cores, values(start.tensors))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("granularity", [PerTensor(), PerRankSlice("last"), PerGroup(16)], ids=str)
def test_error_never_rises_along_the_sweeps(bits, granularity):
    cores = power_law_train(rank=4, seed=bits)
    for grid in (Grid(bits), Grid(bits, "half_integer"), Grid(bits, "affine")):
        tensors = [quantize_tensor(c, grid, granularity) for c in cores]
        refined = refine(cores, tensors, num_sweeps=3)
        assert all(
            after <= before + 1e-9 for before, after in zip(refined.errors, refined.errors[1:], strict=False)
        )
        assert refined.errors[-1] < 0.9 * refined.errors[0]
        assert refined.errors[-1] == pytest.approx(relative_error(cores, values(refined.tensors)), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "gauge", "als"), [(4, 0.75, 0.5), (3, 0.75, 0.5), (2, 0.75, 0.6)])
def test_figures_on_power_law_trains(bits, gauge, als):
    found = quantize_cores(power_law_train(seed=1), bits, num_steps=100, num_sweeps=4)
    errors = found.errors
    assert errors["gauge"] <= gauge * errors["nearest"]
    assert errors["gauge_als"] <= als * errors["nearest"]
    assert all(b <= a + 1e-9 for a, b in zip(found.trail, found.trail[1:], strict=False))


@pytest.mark.slow
def test_weighted_refinement_never_rises_and_lowers_the_error_of_the_outputs():
    cores = power_law_train(rank=4)
    x = torch.randn(2000, 224, generator=torch.Generator().manual_seed(5)) * torch.arange(1.0, 225) ** -0.7
    covariance = x.T @ x / len(x)

    def output_error(tensors):
        d = dense(cores) - dense(values(tensors))
        return float((d @ covariance.double() * d).sum().sqrt())

    weighted = quantize_cores(cores, 3, input_covariance=covariance, num_steps=40, num_sweeps=3)
    plain = quantize_cores(cores, 3, num_steps=40, num_sweeps=3)
    assert all(b <= a + 1e-9 for a, b in zip(weighted.trail, weighted.trail[1:], strict=False))
    assert output_error(weighted.tensors) < 0.95 * output_error(plain.tensors)


def test_rounding_with_feedback_equals_gptq_with_the_dense_kronecker_hessian():
    generator = torch.Generator().manual_seed(6)
    k, a, b = (_positive(size, generator) for size in (2, 3, 4))
    x = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    lattice = Lattice(Grid(3), torch.full((1,), 0.4, dtype=torch.float64), None)
    rounded = round_with_feedback(Quadratic(k, a, b, torch.zeros_like(x), 0.0), lattice, x)
    damped = [m + 1e-4 * m.diagonal().mean() * torch.eye(len(m)) for m in (k, a, b)]
    inverse = torch.linalg.inv(torch.kron(torch.kron(damped[0], damped[1]), damped[2]))
    u = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    flat = x.permute(1, 0, 2, 3).reshape(5, 24).clone()
    expected = torch.empty_like(flat)
    for i in range(24):
        expected[:, i] = lattice.nearest(flat[:, i])
        flat[:, i:] -= torch.outer((flat[:, i] - expected[:, i]) / u[i, i], u[i, i:])
    torch.testing.assert_close(rounded, expected.view(5, 2, 3, 4).permute(1, 0, 2, 3))


def test_coordinate_descent_lowers_the_quadratic_until_no_single_move_helps():
    generator = torch.Generator().manual_seed(7)
    k, a, b = (_positive(size, generator) for size in (2, 3, 4))
    target = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    quadratic = Quadratic(k, a, b, target, 1.0)
    lattice = Lattice(Grid(3), torch.full((1,), 0.4, dtype=torch.float64), None)
    x = lattice.nearest(torch.zeros_like(target))
    before = quadratic.value(x)
    for _ in range(30):
        x = descend(quadratic, lattice, x)
        assert quadratic.value(x) <= before + 1e-12
        before = quadratic.value(x)
    for index in [(0, 0, 0, 0), (1, 4, 2, 3), (0, 2, 1, 2)]:
        for move in (-0.4, 0.4):
            moved = x.clone()
            moved[index] += move
            if torch.equal(lattice.nearest(moved), moved):
                assert quadratic.value(moved) >= before - 1e-12


def _positive(size, generator):
    x = torch.randn(size, 2 * size, generator=generator, dtype=torch.float64)
    return x @ x.T / size


@pytest.mark.parametrize("method", ["nearest", "gauge", "gauge_als"])
def test_single_core_and_rank_one_and_zero_trains(method):
    options = {"method": method, "num_steps": 5, "num_sweeps": 2}
    single = quantize_cores(
        [torch.randn(1, 3, 4, 1, generator=torch.Generator().manual_seed(0))], 4, **options
    )
    assert single.errors[method] < 0.15
    thin = quantize_cores(power_law_train(rank=1), 4, **options)
    assert thin.errors[method] < 0.3
    zero = quantize_cores([torch.zeros(1, 2, 2, 3), torch.zeros(3, 2, 2, 1)], 4, **options)
    assert dense(values(zero.tensors)).abs().max() == 0


@pytest.mark.slow
def test_large_layer_is_feasible():
    cores = power_law_train(modes=[(64, 64), (64, 64)], rank=64, decay=0.7)
    start = time.perf_counter()
    found = quantize_cores(cores, 4, num_steps=5, num_sweeps=1)
    assert found.errors["gauge_als"] < 0.5 * found.errors["nearest"]
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    ("cores", "options", "words"),
    [
        ([torch.ones(1, 2, 2, 3), torch.ones(2, 2, 2, 1)], {}, "cores 0 and 1 do not fit"),
        ([torch.ones(2, 2)], {}, r"expected cores \[r, m, n, r'\]"),
        ([], {}, "expected cores"),
        ([torch.full((1, 2, 2, 1), torch.nan)], {}, "core 0 of shape .* is not finite"),
        (
            [torch.ones(1, 2, 2, 1)],
            {"method": "als"},
            says("method", "gauge_als", "nearest", "gauge"),
        ),
        ([torch.ones(1, 2, 2, 1)], {"bits": 7}, says("bits")),
    ],
)
def test_bad_trains_are_refused(cores, options, words):
    with pytest.raises(ValueError, match=words):
        quantize_cores(cores, options.pop("bits", 4), **options)
