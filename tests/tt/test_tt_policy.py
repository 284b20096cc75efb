"""Who says where plans come from, and that what one says never answers for another."""

import threading

import pytest
import torch
from torch import nn

from compresskd import tt
from compresskd.tt.execution import choice, convolution
from compresskd.tt.execution.contraction import Plan
from compresskd.tt.execution.policy import FIXED, MEASURED, repeatable, source_of


def sources():
    return source_of(training=True), source_of(training=False)


def test_training_is_fixed_and_inference_measured_where_nobody_says_otherwise():
    assert sources() == (FIXED, MEASURED)
    with tt.plans("measured"):
        assert sources() == (MEASURED, MEASURED)
        with tt.plans("fixed"):
            assert sources() == (FIXED, FIXED)
        with repeatable():  # somebody has said otherwise
            assert sources() == (MEASURED, MEASURED)
    with pytest.raises(RuntimeError, match="mine"), tt.plans("fixed"):
        raise RuntimeError("mine")
    with repeatable():
        assert sources() == (FIXED, FIXED)
    assert sources() == (FIXED, MEASURED)
    with (
        pytest.raises(ValueError, match="plan: got 'quick', expected fixed, measured"),
        tt.plans("quick"),
    ):
        pass


def test_what_one_thread_says_is_not_said_to_another():
    found = []
    with tt.plans("fixed"):
        thread = threading.Thread(target=lambda: found.append(sources()))
        thread.start()
        thread.join()
    assert found == [(FIXED, MEASURED)]


@pytest.mark.parametrize("shape", [(3, 48), (2, 5, 48)])
def test_each_source_runs_its_own_plan_in_one_layer(monkeypatch, shape):
    layer, x = tt.TTLinear((6, 8), (8, 6), 4).eval(), torch.randn(shape)
    wanted = {FIXED: Plan("chain", (1,)), MEASURED: Plan("folded")}
    asked = []

    def choose(*_, source, training, **__):
        asked.append((source, training))
        return wanted[source]

    monkeypatch.setattr("compresskd.tt.execution.product.choose", choose)
    from compresskd.tt.execution.product import _chain

    _chain.cache_clear()
    with torch.no_grad():
        measured = layer(x)
        with tt.plans("fixed"):
            fixed = layer(x)
            assert layer.plan(x, training=False) == str(wanted[FIXED])
        assert torch.equal(layer(x), measured)
        assert layer.plan(x, training=False) == str(wanted[MEASURED])
    assert asked == [(MEASURED, False), (FIXED, False)]
    assert torch.allclose(fixed, measured, atol=1e-5)
    layer(x).sum().backward()
    assert asked[-1] == (FIXED, True)
    _chain.cache_clear()


def test_a_convolution_is_fixed_by_its_multiplications(monkeypatch):
    monkeypatch.setattr(convolution, "_measured", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(convolution, "decide", lambda *_: pytest.fail("looked into the cache"))
    small = tt.TTConv2d(32, 32, ((1, 1), (3, 3), (1, 1)), 4).eval()
    large = tt.TTConv2d(32, 32, ((1, 1), (3, 3), (1, 1)), 32).eval()
    x = torch.randn(2, 32, 8, 8)
    for layer, expected in ((small, "chain"), (large, "folded")):
        kernel = layer.to_dense().detach()
        with torch.no_grad(), tt.plans("fixed"):
            assert layer.plan(x, training=False) == expected
            y = layer(x)
        assert torch.allclose(y, nn.functional.conv2d(x, kernel, layer.bias), atol=1e-4)
        assert layer.plan(x, training=True) == expected


def test_measured_convolutions_ask_and_fixed_ones_do_not_get_their_answer(monkeypatch):
    layer, x = tt.TTConv2d(32, 32, ((1, 1), (3, 3), (1, 1)), 4).eval(), torch.randn(2, 32, 8, 8)
    monkeypatch.setattr(convolution, "decide", lambda *_: {"folded": True, "products": False})
    with torch.no_grad():
        layer(x)
        assert layer.plan(x, training=False) == "folded"
        with tt.plans("fixed"):
            assert layer.plan(x, training=False) == "chain"
            fixed = layer(x)
    assert torch.allclose(fixed, layer(x), atol=1e-4)


def test_plans_under_autocast_are_those_of_its_dtype(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "compresskd.tt.execution.product.choose", lambda *_, dtype, **__: seen.append(dtype) or Plan("folded")
    )
    from compresskd.tt.execution.product import _chain

    _chain.cache_clear()
    layer, x = tt.TTLinear((6, 8), (8, 6), 4), torch.randn(3, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.plan(x, training=True) == "folded"
    assert layer.plan(x, training=True) == "folded"
    assert seen == [torch.bfloat16, torch.float32]
    _chain.cache_clear()
    choice.choose.cache_clear()


def test_cores_stay_in_one_piece_whatever_memory_order_a_model_is_brought_to():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), tt.TTLinear((8, 18), (4, 6), 3))
    model.to(memory_format=torch.channels_last)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(core.is_contiguous() for core in model[2].cores)
