from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskd.tt.decompose.cores import core_shapes, merge, to_matrix
from compresskd.tt.execution.chain import Chain
from compresskd.tt.execution.choice import choose
from compresskd.tt.execution.contraction import Plan, all_cuts, matrices
from compresskd.tt.execution.machine import Machine, _machine, cache_directory, machine
from compresskd.tt.execution.planner import bucket, plans, rank_plans
from compresskd.tt.execution.plans import training_run
from compresskd.tt.execution.rows import is_turned
from compresskd.tt.execution.streamed import StreamedLinear, best_cut


@st.composite
def products(draw):
    d = draw(st.integers(2, 4))
    dims = st.lists(st.integers(1, 5), min_size=d, max_size=d)
    input_dims, output_dims = draw(dims), draw(dims)
    output_dims[draw(st.integers(0, d - 1))] = draw(st.sampled_from([1, 2, 17, 20]))
    ranks = draw(st.lists(st.integers(1, 4), min_size=d - 1, max_size=d - 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    cores = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in core_shapes(input_dims, output_dims, ranks)
    ]
    B = draw(st.sampled_from([1, 2, 5, 33]))
    x = torch.randn(
        B, to_matrix(cores).shape[1], generator=generator, dtype=torch.float64, requires_grad=True
    )
    return x, cores


@pytest.mark.slow
@given(products(), st.sampled_from([0, 3, 16]))
@settings(max_examples=30, deadline=None)
def test_every_plan_equals_the_dense_product_forward_and_backward(product, chunk):
    x, cores = product
    expected = x @ to_matrix(cores).T
    grad, bias = torch.randn_like(expected), torch.randn(expected.shape[1], dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, [x, *cores], grad)
    scale = max(1.0, float(expected.detach().abs().max()))
    grad_scale = max(1.0, *(float(g.abs().max()) for g in expected_grads))
    for cuts in all_cuts(len(cores)):
        for from_right in (True, False):
            Gs = [G.detach() for G in matrices(cores, cuts, from_right=from_right)]
            outputs = []
            for kind, columns in (("chain", False), ("recompute", False), ("recompute", True)):
                chain = Chain.of(Plan(kind, cuts, from_right, columns, chunk), [core.shape for core in cores])
                y = chain.forward(x.detach(), Gs, bias)
                assert torch.allclose(y, expected + bias, rtol=0, atol=1e-11 * scale)
                outputs.append(training_run(chain, x, cores, bias, expected.shape[1]) - bias)
            for y in outputs:
                grads = torch.autograd.grad(y, [x, *cores], grad, retain_graph=True)
                assert torch.allclose(y, expected, rtol=0, atol=1e-11 * scale)
                for ours, theirs in zip(grads, expected_grads, strict=True):
                    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11 * grad_scale)


@pytest.mark.parametrize("kind", ["chain", "recompute"])
def test_a_wide_step_is_turned_where_its_gradient_is_taken_and_equals_the_dense_product(kind):
    cores = [torch.randn(shape, dtype=torch.float64) for shape in ((1, 16, 32, 8), (8, 3, 20, 1))]
    cores = [core.requires_grad_() for core in cores]
    chain = Chain.of(
        Plan(kind, (1,), False, False, 2 * (kind == "recompute")), [core.shape for core in cores]
    )
    assert is_turned(chain.steps[0], True)
    assert not is_turned(chain.steps[0], False)
    x = torch.randn(5, 640, dtype=torch.float64, requires_grad=True)
    expected = x @ to_matrix(cores).T
    y = training_run(chain, x, cores, None, 48)
    assert torch.allclose(y, expected, atol=1e-9)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(y, [x, *cores], grad),
        torch.autograd.grad(expected, [x, *cores], grad),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-9)


@given(products())
@settings(max_examples=30, deadline=None)
def test_streamed_product_equals_the_dense_one(product):
    x, cores = product
    expected = x @ to_matrix(cores).T
    grad = torch.randn_like(expected)
    bond = best_cut([tuple(core.shape) for core in cores])
    left, right = merge(cores[:bond])[0], merge(cores[bond:])[..., 0].transpose(0, 1)
    y = StreamedLinear.apply(x, left, right)
    assert torch.allclose(y, expected, rtol=0, atol=1e-10)
    ours = torch.autograd.grad(y, [x, *cores], grad)
    theirs = torch.autograd.grad(expected, [x, *cores], grad)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9 * max(1.0, float(b.abs().max())))


def flat_machine(rate=1e-11, operation=1e-6):
    mm = [[[rate] * 5] * 5] * 6
    bmm = [[[rate] * 4] * 4] * 5
    return Machine(mm, bmm, [5e10, 4e10, 1e10], operation, 1e-9, 4e-10)


def test_model_prefers_little_work_on_a_machine_of_one_rate():
    opposed = ((1, 64, 4, 16), (16, 16, 16, 16), (16, 4, 64, 1))
    best = rank_plans(opposed, 256, training=False, machine=flat_machine())[0].plan
    assert best.kind == "chain"
    assert best.cuts == (1, 2)
    assert best.from_right


def test_model_folds_where_the_chain_is_more_work():
    wide = ((1, 16, 16, 200), (200, 16, 16, 1))
    assert rank_plans(wide, 256, training=False, machine=flat_machine())[0].plan.kind == "folded"


def test_streamed_is_chosen_for_large_batches_of_high_rank():
    wide = ((1, 64, 64, 64), (64, 64, 64, 1))
    best = rank_plans(wide, 2048, training=True, machine=flat_machine())[0].plan
    assert best.kind in ("streamed", "folded")


def test_training_keeps_no_more_than_a_dense_gradient_would_take():
    square = ((1, 64, 64, 16), (16, 64, 64, 1))
    kinds = {
        B: {c.plan.kind for c in rank_plans(square, B, training=True, machine=flat_machine())}
        for B in (32, 2048)
    }
    assert "chain" in kinds[32]
    assert kinds[2048] == {"streamed", "recompute"}


def test_interpolation_is_exact_on_the_grid_and_monotone_between():
    mm = [[[1e-9 / (i + 1) / (j + 1) / (k + 1) for k in range(5)] for j in range(5)] for i in range(6)]
    on = Machine(mm, [[[1e-9] * 4] * 4] * 5, [1e15] * 3, 0.0, 0.0, 0.0)
    assert on.mm_seconds(16, 64, 256) == pytest.approx(16 * 64 * 256 * mm[2][2][3])
    assert on.mm_seconds(1, 4, 4) == pytest.approx(16 * mm[0][0][0])
    assert on.mm_seconds(9999, 4096, 4096) == pytest.approx(9999 * 4096**2 * mm[5][4][4])
    between = on.mm_seconds(32, 64, 256) / (32 * 64 * 256)
    assert mm[3][2][3] < between < mm[2][2][3]


def test_calibration_is_written_once_and_read_back(monkeypatch, tmp_path):
    monkeypatch.setenv(
        "COMPRESSKD_CACHE", str(tmp_path)
    )  # none of this process, nor of this machine, is there
    monkeypatch.setattr("compresskd.tt.execution.machine._machine", lru_cache(_machine.__wrapped__))
    first = machine("cpu", torch.float32, torch.get_num_threads())
    files = list(cache_directory().glob("*.json"))
    assert len(files) >= 1
    assert first.operation > 0
    assert min(first.bandwidth) > 0
    assert machine("cpu", torch.float32, torch.get_num_threads()) is first


def test_plans_are_cached_by_bucket():
    assert [bucket(n) for n in (0, 1, 2, 3, 32, 33)] == [1, 1, 2, 4, 32, 64]
    shapes = ((1, 8, 4, 3), (3, 4, 8, 1))
    place = {"device_type": "cpu", "dtype": torch.float32, "num_threads": 1}
    options = {"training": False, "source": "measured", **place}
    assert choose(shapes, 32, **options) is choose(shapes, 32, **options)
    kinds = {plan.kind for plan in plans(3, 64, True)}
    assert kinds == {"folded", "streamed", "chain", "recompute"}
    assert all(str(plan) for plan in plans(3, 64, False))
