"""Layers whose parameters others read are found before anything is changed."""

import copy

import pytest
import torch
from odd_models import READ, RIGHT, WRONG, Listed, Plain
from torch import nn

from compresskd import layers, tt
from compresskd.compression.compression import Compression, NothingCompressed, factorize_model
from compresskd.proof import read_by_others


def factorizable(model):
    return [pair for layer in layers.find(model) for pair in layer.members.items()]


def read(model, batch=4):
    return read_by_others(model, [name for name, _ in factorizable(model)], torch.zeros(batch, 64))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", READ)
def test_readers_are_found(kind):
    model = kind()
    state = copy.deepcopy(model.state_dict())
    found = read(model)
    assert found.keys() == READ[kind]
    assert set(found.values()) == {
        "another module reads its weight, which another form of the layer does not have"
    }
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [*RIGHT, *WRONG])
def test_nobody_else_is_said_to_be_read(kind):
    assert kind.__name__ in ("Judged",) or read(kind()) == {}


@pytest.mark.parametrize("kind", [Listed, Plain])
def test_factorized_layers_have_nothing_to_be_read(kind):
    model = kind()
    factorize_model(
        model,
        {n: lambda layer: tt.factorize(layer, rank=2) for n, _ in factorizable(model)},
        torch.ones(2, 64),
    )
    assert read(model) == {}


def test_a_model_that_takes_no_other_module_says_so():
    class Strict(Plain):
        def forward(self, x):
            assert type(self.mid) is nn.Linear, "no Linear"
            return super().forward(x)

    assert read(Strict()) == {
        "mid": "the model does not run with another module in its place: AssertionError: no Linear"
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", [kind for kind in READ if kind.__name__ != "TiedHead"])
def test_without_the_readers_all_runs_in_every_mode(kind):
    model, x = kind(), torch.randn(4, 64)
    names = {name for name, layer in factorizable(model) if type(layer) is nn.Linear} - READ[kind]
    found = factorize_model(model, {n: lambda layer: tt.factorize(layer, rank=2) for n in names}, x)
    assert found.layers.keys() | found.skipped.keys() >= names
    for training in (True, False):
        model.train(training)
        model(x)
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)


def test_a_model_of_nothing_but_readers_is_refused_before_training():
    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(64, 10)

        def forward(self, x):
            return x @ self.out.weight.T

    with pytest.raises(NothingCompressed, match="out: another module reads its weight"):
        Compression(rank=1).check(All(), torch.zeros(2, 64))
