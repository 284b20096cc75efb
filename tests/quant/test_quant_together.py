"""Weights rounded in one call: bit for bit what each of them is by itself."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from compresskd.quant import together
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.granularity import PerChannel, PerGroup, PerRankSlice, PerTensor
from compresskd.quant.prepare import QuantSpec, disable, freeze, prepare
from compresskd.quant.together import rounded_together


class Cores(nn.Module):
    """Two cores, of which the second is read twice."""

    def __init__(self, *ranks):
        super().__init__()
        self.cores = nn.ParameterList([torch.randn(1, 2, 3, ranks[0]), torch.randn(ranks[0], 3, 2, 1)])

    def forward(self, x):
        a, b = self.cores
        w = torch.einsum("amnr,rpqb->mpnq", a, b).reshape(6, 6)
        return x @ w.T + self.cores[1].sum()


class Net(nn.Module):
    def __init__(self, rank=3, width=6):
        super().__init__()
        self.first, self.second = Cores(rank), nn.Linear(6, width)
        self.conv, self.unread = nn.Conv1d(1, 2, 3), nn.Linear(4, 4)
        self.large = nn.Linear(2 * (width - 2), 2**16 // 4 + 1)

    def forward(self, x):
        x = self.second(self.first(x).relu())
        return self.large(self.conv(x.unsqueeze(1)).flatten(1))


def step(model, x, rounding):
    model.zero_grad()
    with rounding:
        model(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@pytest.fixture
def calls(monkeypatch):
    """How many weights each call rounds."""
    sizes, rounded = [], together._Group.rounded
    monkeypatch.setattr(
        together._Group, "rounded", lambda group: sizes.append(len(group.weights)) or rounded(group)
    )
    return sizes


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    bits=st.sampled_from([2, 3, 4, 8]),
    grid=st.sampled_from(["symmetric", "half_integer"]),
    granularity=st.sampled_from([PerChannel(), PerTensor(), PerGroup(5)]),
    of_cores=st.sampled_from([PerTensor(), PerRankSlice()]),
    rank=st.integers(1, 40),
)
def test_values_and_gradients_are_those_of_one_by_one(seed, bits, grid, granularity, of_cores, rank):
    torch.manual_seed(seed)
    model, x = Net(rank), torch.randn(5, 6)
    prepare(model, QuantSpec(bits, grid, granularity, core_granularity=of_cores))
    with torch.no_grad():  # so that some weights are clipped
        for name, parameter in model.named_parameters():
            if name.endswith("log_scale"):
                parameter.add_(torch.randn_like(parameter) * 0.5)
    with parametrize.cached():
        expected = model(x)
    with rounded_together(model):
        assert torch.equal(model(x), expected)
    assert same(step(model, x, rounded_together(model)), step(model, x, parametrize.cached()))


def test_small_ones_share_a_call_and_large_ones_do_not(calls, monkeypatch):
    model = Net()
    step(model, torch.randn(5, 6), rounded_together(model))
    prepare(model, QuantSpec(bits=4))
    copied = copy.deepcopy(model)
    for each in (model, copied):
        step(each, torch.randn(5, 6), rounded_together(each))
    assert calls == [5, 5]
    rounded = FakeQuant.forward
    one_by_one = []
    monkeypatch.setattr(
        FakeQuant, "forward", lambda quant, w: one_by_one.append(w.shape) or rounded(quant, w)
    )
    for each in (model, copied):
        step(each, torch.randn(5, 6), rounded_together(each))
    assert {*one_by_one} == {(*model.large.bias.shape, 8)}
    assert model.unread.parametrizations.weight.original.grad is None
    assert parametrize._cache == {}


@pytest.mark.parametrize(
    "change",
    [freeze, disable, lambda model: model.double()],
    ids=["frozen", "disabled", "double"],
)
def test_what_does_not_learn_as_float32_goes_by_itself(change, calls):
    model, x = Net(), torch.randn(5, 6)
    prepare(model, QuantSpec(bits=4))
    change(model)
    x = x.to(model.second.bias.dtype)
    assert same(step(model, x, rounded_together(model)), step(model, x, parametrize.cached()))
    assert calls == []


@pytest.mark.parametrize(
    "options", [{"grid": "affine", "core_grid": "affine"}, {"estimator": "straight_through"}]
)
def test_other_roundings_go_by_themselves(options, calls):
    model, x = Net().eval(), torch.randn(5, 6)
    prepare(model, QuantSpec(bits=4, **options))
    assert same(step(model, x, rounded_together(model)), step(model, x, parametrize.cached()))
    assert calls == []


def test_a_compiled_model_rounds_by_itself(calls):
    model = Net()
    prepare(model, QuantSpec(bits=4))
    with rounded_together(
        torch.compile(model, backend="eager")
    ):  # which compiles nothing before it is called
        assert parametrize._cache == {}
    assert calls == []


def test_some_are_frozen(calls):
    model, x = Net(), torch.randn(5, 6)
    model.second.requires_grad_(False)
    prepare(model, QuantSpec(bits=4))
    assert same(step(model, x, rounded_together(model)), step(model, x, parametrize.cached()))
    assert calls == [4]


def test_a_tied_weight_adds_up_the_gradients_of_its_places(calls):
    model, x = (
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)),
        torch.randn(5, 6),
    )
    model[1].weight = model[0].weight
    prepare(model, QuantSpec(bits=4))
    assert same(step(model, x, rounded_together(model)), step(model, x, parametrize.cached()))
    assert calls == [2]
