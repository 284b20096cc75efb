import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresskd.tt import TTConv2d, from_structure
from compresskd.tt.decompose.modes import conv_modes
from compresskd.tt.execution import convolution
from compresskd.tt.execution.convolution import Way


@st.composite
def convolutions(draw):
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
    padding = draw(
        st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid"), st.just("same"))
    )
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    torch.manual_seed(draw(st.integers(0, 99)))
    dense = nn.Conv2d(
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        kernel,
        stride=(1, 1) if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=torch.float64,
    )
    forms = conv_modes(dense.in_channels, dense.out_channels, kernel)
    return dense, forms[draw(st.integers(0, len(forms) - 1))].stages


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(convolutions(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_full_rank_equals_the_dense_convolution(problem, batched, last):
    dense, stages = problem
    layer = TTConv2d.from_dense(dense, stages)
    assert torch.allclose(layer.to_dense(), dense.weight, rtol=0, atol=1e-10)
    shape = (2, dense.in_channels, 8, 9) if batched else (dense.in_channels, 8, 9)
    x = torch.randn(shape, dtype=torch.float64)
    if last and batched:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    x_dense = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(x_dense)
    assert torch.allclose(y, expected, rtol=0, atol=1e-10)
    grad = torch.randn_like(expected)
    y.backward(grad)
    expected.backward(grad)
    assert torch.allclose(x.grad, x_dense.grad, rtol=0, atol=1e-9)
    ours = torch.autograd.grad(layer.to_dense(), list(layer.cores), dense.weight.grad)
    for core, core_grad in zip(layer.cores, ours, strict=True):
        assert torch.allclose(core.grad, core_grad, rtol=0, atol=1e-8)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "stages", [((1, 1), (3, 3), (1, 1)), ((3, 1), (1, 3)), ((3, 3), (1, 1)), ((1, 1), (3, 3))]
)
@pytest.mark.parametrize("folded", [True, False])
def test_truncated_layer_equals_its_dense_kernel_by_both_ways(stages, folded, monkeypatch):
    monkeypatch.setattr("compresskd.tt.layers.conv.fastest", lambda *_: Way(folded))
    dense = nn.Conv2d(6, 8, 3, padding=1, stride=2)
    layer = TTConv2d.from_dense(dense, stages, ranks=[2] * (len(stages) - 1)).eval()
    x = torch.randn(2, 6, 9, 9)
    expected = nn.functional.conv2d(x, layer.to_dense(), layer.bias, stride=2, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert layer.inference_bytes > 0
        layer.cores[0].mul_(3.0)
        changed = nn.functional.conv2d(x, layer.to_dense(), layer.bias, stride=2, padding=1)
        assert torch.allclose(layer(x), changed, atol=1e-5)


@pytest.mark.parametrize("way", [Way(False, True), Way(True, True)], ids=str)
@pytest.mark.parametrize(
    ("kernel", "stages", "size", "options"),
    [
        (1, ((1, 1), (1, 1)), (5, 4), {}),
        (1, ((1, 1), (1, 1)), (1, 1), {"bias": False}),
        (1, ((1, 1), (1, 1)), (5, 4), {"padding": 1, "padding_mode": "reflect"}),
        (1, ((1, 1), (1, 1)), (6, 6), {"stride": 2}),
        (3, ((1, 1), (3, 3), (1, 1)), (6, 5), {"padding": 1, "stride": 2}),
    ],
    ids=["pixels", "one pixel", "padded", "strided", "around a kernel"],
)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("last", [True, False], ids=["rows", "planes"])
def test_products_equal_convolutions_and_lie_as_these_do(
    way, kernel, stages, size, options, rank, last, monkeypatch
):
    asked = []

    def chosen(x, runs, *_):
        asked.extend(runs())
        return way if way in asked else Way(folded=True)

    monkeypatch.setattr("compresskd.tt.layers.conv.fastest", chosen)
    dense = nn.Conv2d(6, 8, kernel, **options)
    layer = TTConv2d.from_dense(dense, stages, ranks=[rank] * (len(stages) - 1)).eval()
    dense.weight.data = layer.to_dense().detach()
    x = torch.randn(3, 6, *size)
    if last:
        x, dense = x.to(memory_format=torch.channels_last), dense.to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = dense(x)
        for _ in range(2):  # prepared, and kept
            y = layer(x)
            assert torch.allclose(y, expected, atol=1e-5)
            assert y.is_contiguous(memory_format=torch.channels_last) == last or 1 in y.shape[2:]
        if way in asked and not way.folded and options.get("stride") is None and kernel == 1:
            assert layer.inference_bytes == 0  # views of the cores
        assert layer(x[:0]).shape == expected[:0].shape
        layer.cores[0].mul_(2.0)
        bias = 0.0 if dense.bias is None else dense.bias.view(-1, 1, 1)
        assert torch.allclose(layer(x), 2 * (expected - bias) + bias, atol=1e-5)


def test_which_ways_may_be_the_fastest():
    everything = ["chain, by products", "chain", "folded, by products", "folded"]
    assert [str(way) for way in convolution.ways([True, True], 0.5)] == everything
    assert [str(way) for way in convolution.ways([True, False], 0.5)] == [everything[0], "chain", "folded"]
    assert convolution.ways([False, False], 0.5) == [Way(False), Way(True)]
    assert convolution.ways([False], 1.0) == [Way(True)]  # as much work as dense
    assert TTConv2d(8, 8, ((1, 1), (1, 1)), 2, stride=2)._are_products() == [False, True]


def test_of_ways_as_fast_as_each_other_the_first_is_taken(monkeypatch):
    ways = [Way(False, True), Way(False), Way(True)]
    for seconds, expected in (([1.04, 1.0, 1.01], 0), ([1.2, 1.0, 1.01], 1), ([1.2, 1.1, 1.0], 2)):
        monkeypatch.setattr(convolution, "least_seconds", lambda *_, seconds=seconds: seconds)
        found = convolution._measured(dict.fromkeys(ways, lambda: None), torch.device("cpu"))
        assert found == ways[expected]


def test_rank_above_the_dense_work_folds_in_training():
    layer = TTConv2d(8, 8, ((1, 1), (3, 3), (1, 1)), 8, padding=1)
    x = torch.randn(1, 8, 6, 6)
    assert layer._macs(x) > 1.0
    expected = nn.functional.conv2d(x, layer.to_dense(), layer.bias, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_autocast():
    layer = TTConv2d.from_dense(nn.Conv2d(8, 8, 3, padding=1), ((1, 1), (3, 3), (1, 1)), ranks=(4, 4))
    x = torch.randn(2, 8, 6, 6)
    expected = nn.functional.conv2d(x, layer.to_dense(), layer.bias, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        with torch.no_grad():
            assert (layer(x) - expected).abs().max() < 0.1
    assert (y - expected).abs().max() < 0.1
    y.float().sum().backward()
    assert all(core.grad is not None for core in layer.cores)


def test_copies_pickles_structure_and_bias():
    dense = nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2, padding_mode="reflect")
    layer = TTConv2d.from_dense(dense, ((3, 1), (1, 5)), ranks=(4,))
    assert torch.equal(layer.bias, dense.bias)
    assert layer.bias.data_ptr() != dense.bias.data_ptr()
    assert TTConv2d.from_dense(nn.Conv2d(4, 6, 3, bias=False), ((3, 1), (1, 3))).bias is None
    x = torch.randn(1, 4, 12, 12)
    empty = from_structure(layer.structure())
    empty.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), empty):
        assert torch.equal(other(x), layer(x))
    for other in (layer.balance(), layer.orthogonalize(1), layer.round(tolerance=1e-6)):
        assert torch.allclose(other(x), layer(x), atol=1e-5)
    assert "stages=((3, 1), (1, 5)), ranks=(4,)" in repr(layer)
    assert layer.num_parameters_dense == 4 * 6 * 15 + 6


@pytest.mark.parametrize("stages", [((1, 1), (3, 3), (1, 1)), ((3, 1), (1, 3))])
def test_fresh_layers_keep_the_variance(stages):
    ratios = []
    for _ in range(40):
        layer = TTConv2d(16, 16, stages, 8, bias=False)
        ratios.append(float(layer(torch.randn(2, 16, 12, 12)).detach().var()))
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.3)


def test_impossible_forms_are_refused():
    with pytest.raises(ValueError, match="no form for groups=2"):
        TTConv2d(4, 4, ((3, 3), (1, 1)), 2, groups=2)
    with pytest.raises(ValueError, match="each axis of the kernel in one stage"):
        TTConv2d(4, 4, ((3, 3), (3, 3)), 2)
    with pytest.raises(ValueError, match="rows not after columns"):
        TTConv2d(4, 4, ((1, 3), (3, 1)), 2)
