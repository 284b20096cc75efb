"""Which parameters decay, and the formula of the average."""

import copy

import pytest
import torch
from torch import nn

from compresskd.training.parameters import Average, parameter_groups


class Positions(nn.Module):
    no_weight_decay = True

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 4))
        self.inner = nn.Linear(2, 2)


def names(model, group):
    of = {parameter: name for name, parameter in model.named_parameters()}
    return [of[parameter] for parameter in group["params"]]


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    decay, rest = parameter_groups([model])
    assert names(model, decay) == ["0.weight", "2.weight"]
    assert names(model, rest) == ["0.bias", "1.weight", "1.bias", "2.bias"]
    assert "weight_decay" not in decay
    assert rest["weight_decay"] == 0.0


def test_marks_exempt_a_module_s_own_parameters_and_survive_a_copy():
    model = copy.deepcopy(nn.ModuleDict({"positions": Positions(), "head": nn.Linear(2, 2)}))
    model["head"].weight.no_weight_decay = True
    decay, rest = parameter_groups([model])
    assert names(model, decay) == ["positions.inner.weight"]
    assert names(model, rest) == ["positions.table", "positions.inner.bias", "head.weight", "head.bias"]


def test_shared_and_frozen_parameters():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    (only,) = parameter_groups([model, nn.ModuleList([model[1]])])
    assert names(model, only) == ["0.weight"]


def test_weights_shrink_only_where_they_decay():
    model = nn.Linear(3, 3)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = torch.optim.SGD(parameter_groups([model]), lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, torch.full((3, 3), 0.95))
    assert torch.equal(model.bias, torch.ones(3))


def test_average_follows_its_formula():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    average = Average([parameter], decay=0.4)
    expected = parameter.detach().clone()
    for step, change in enumerate([0.5, -1.0, 2.0, 0.25, 3.0], start=1):
        with torch.no_grad():
            parameter += change
        average.update()
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
        assert torch.allclose(average.shadow[0], expected, rtol=1e-12)
    assert pytest.approx(0.4) == (1 + 5) / (10 + 5)  # both branches of the minimum were met


def test_average_is_in_the_model_only_within_the_block():
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = Average([parameter], decay=0.5)
    with torch.no_grad():
        parameter.fill_(3.0)
    with average.applied():
        assert parameter.item() == 1.0
    assert parameter.item() == 3.0
    assert average.shadow[0].item() == 1.0
