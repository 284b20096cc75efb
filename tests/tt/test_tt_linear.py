import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresskd.tt import TTLinear, from_structure
from compresskd.tt.decompose.cores import to_matrix


def dense_of(layer):
    dense = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=layer.cores[0].dtype
    )
    with torch.no_grad():
        dense.weight.copy_(layer.to_dense())
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
    return dense


@st.composite
def layers(draw):
    d = draw(st.integers(1, 4))
    dims = st.lists(st.integers(1, 6), min_size=d, max_size=d)
    input_dims, output_dims = draw(dims), draw(dims)
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    torch.manual_seed(draw(st.integers(0, 99)))
    return TTLinear(
        input_dims,
        output_dims,
        draw(st.integers(1, 5)),
        in_features=max(1, math.prod(input_dims) - draw(st.integers(0, 2))),
        out_features=max(1, math.prod(output_dims) - draw(st.integers(0, 2))),
        bias=draw(st.booleans()),
        dtype=dtype,
    )


@given(layers(), st.lists(st.sampled_from([0, 1, 2, 3, 40]), max_size=3))
@settings(max_examples=60, deadline=None)
def test_equals_the_dense_layer_forward_and_backward(layer, lead):
    dense, dtype = dense_of(layer), layer.cores[0].dtype
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    x = torch.randn(*lead, layer.in_features, dtype=dtype, requires_grad=True)
    x_dense = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(x_dense)
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    assert torch.allclose(y, expected, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    assert torch.allclose(x.grad, x_dense.grad, rtol=tolerance, atol=tolerance)
    core_grads = torch.autograd.grad(layer.to_dense(), list(layer.cores), dense.weight.grad)
    for core, core_grad in zip(layer.cores, core_grads, strict=True):
        assert torch.allclose(core.grad, core_grad, rtol=tolerance, atol=10 * tolerance)
    if layer.bias is not None:
        assert torch.allclose(layer.bias.grad, dense.bias.grad, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, rtol=tolerance, atol=tolerance)
    with torch.inference_mode():
        assert torch.allclose(layer(x.detach()), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_and_bfloat16(rows, dtype):
    layer = TTLinear((4, 8), (8, 4), 3, dtype=dtype)
    dense, x = dense_of(layer), torch.randn(rows, 32, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), dense(x)
        assert y.dtype == expected.dtype == torch.bfloat16
        assert (y - expected).abs().max() < 0.1
        y.float().square().sum().backward()
        with torch.no_grad():
            assert (layer(x) - expected).abs().max() < 0.1
    assert all(core.grad is not None and core.grad.dtype == dtype for core in layer.cores)


def test_inference_follows_every_change_of_the_cores():
    layer = TTLinear((4, 8), (8, 4), 3, bias=True).eval()
    x = torch.randn(5, 32)

    def check():
        with torch.no_grad():
            assert torch.allclose(layer(x), dense_of(layer)(x), atol=1e-5)

    check()
    with torch.no_grad():
        layer.cores[0].mul_(2.0)
        check()
        layer.bias.add_(1.0)
        check()
    torch.optim.SGD(layer.parameters(), lr=0.1).zero_grad()
    layer(x).square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    check()
    layer.load_state_dict(TTLinear((4, 8), (8, 4), 3).state_dict())
    check()
    layer.cores[1] = nn.Parameter(torch.randn_like(layer.cores[1]))
    check()
    layer.double().float()
    check()


def test_gradients_reach_a_bias_over_frozen_cores():
    layer = TTLinear((4, 8), (8, 4), 3)
    for core in layer.cores:
        core.requires_grad_(False)
    layer(torch.randn(3, 32)).sum().backward()
    assert torch.allclose(layer.bias.grad, torch.full((32,), 3.0))


def test_gradcheck():
    layer = TTLinear((2, 3), (3, 2), 2, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_copies_pickles_and_structure():
    layer = TTLinear((4, 8), (8, 4), 3, in_features=30, out_features=31)
    x = torch.randn(5, 30)
    with torch.no_grad():
        y = layer(x)
        assert layer.inference_bytes > 0
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other.inference_bytes == 0
            assert torch.equal(other(x), y)
        before = torch.get_rng_state()
        empty = from_structure(layer.structure())
        assert torch.equal(torch.get_rng_state(), before)
        assert float(empty(x).abs().max()) == 0.0
        empty.load_state_dict(layer.state_dict())
        assert torch.equal(empty(x), y)
    assert empty.structure() == layer.structure()
    assert [name for name, _ in layer.named_parameters()] == ["bias", "cores.0", "cores.1"]


def test_unknown_structure_is_refused():
    with pytest.raises(ValueError, match=r"TTLinear.*got 'Conv9d'"):
        from_structure({"class": "Conv9d"})


@pytest.mark.parametrize("dims", [((4, 16), (16, 4)), ((8, 2, 4), (2, 4, 8)), ((1, 64), (64, 1))])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_fresh_layers_keep_the_variance(dims, rank):
    ratios = []
    for _ in range(60):
        layer = TTLinear.random(*dims, rank, bias=False)
        ratios.append(float(layer(torch.randn(64, 64)).detach().var()))
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.35)


def test_gain_scales_the_output():
    torch.manual_seed(1)
    small = TTLinear.random((4, 16), (16, 4), 8, bias=False)
    torch.manual_seed(1)
    large = TTLinear.random((4, 16), (16, 4), 8, bias=False, gain=3.0)
    assert torch.allclose(large.to_dense(), 3 * small.to_dense(), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_from_dense_copies_the_bias_and_is_exact_at_full_rank(bias):
    dense = nn.Linear(24, 30, bias=bias, dtype=torch.float64)
    layer = TTLinear.from_dense(dense, (2, 3, 4), (5, 3, 2))
    x = torch.randn(3, 24, dtype=torch.float64)
    assert torch.allclose(layer(x), dense(x), rtol=0, atol=1e-10)
    if bias:
        assert torch.equal(layer.bias, dense.bias)
        assert layer.bias.data_ptr() != dense.bias.data_ptr()
    else:
        assert layer.bias is None


def test_round_orthogonalize_balance_return_layers_of_the_same_map():
    layer = TTLinear((4, 3, 5), (3, 5, 4), 4, dtype=torch.float64).eval()
    x = torch.randn(6, 60, dtype=torch.float64)
    for other in (layer.balance(), layer.orthogonalize(1), layer.round(tolerance=1e-9)):
        assert not other.training
        assert torch.allclose(other(x), layer(x), atol=1e-9)
    rounded = layer.round(ranks=(2, 3))
    assert rounded.ranks == (2, 3)
    assert layer.round(2).ranks == (2, 2)
    assert torch.equal(rounded.bias, layer.bias)


def test_ranks_are_clipped_and_counted():
    layer = TTLinear((2, 2), (3, 3), 1000)
    assert layer.ranks == (6,)
    assert layer.num_parameters == sum(p.numel() for p in layer.parameters())
    assert layer.num_parameters_dense == 4 * 9 + 9
    assert "ranks=(6,)" in repr(layer)
    assert torch.equal(layer.to_dense(), to_matrix(list(layer.cores)))


def test_bad_input_is_refused():
    layer = TTLinear((2, 2), (3, 3), 2)
    with pytest.raises(ValueError, match=r"expected input \[\.\.\., 4\], got \[3, 5\]"):
        layer(torch.zeros(3, 5))
    with pytest.raises(TypeError, match=r"float32, the dtype of the cores; got torch.float64"):
        layer(torch.zeros(3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="tt_rank >= 1"):
        TTLinear((2, 2), (3, 3), 0)
    with pytest.raises(ValueError, match="product 4"):
        TTLinear((2, 2), (3, 3), 2, in_features=5)


def test_double_backward_through_small_batches():
    layer = TTLinear((2, 3), (3, 2), 2, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))
