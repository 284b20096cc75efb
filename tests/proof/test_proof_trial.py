"""New layers in place of dense ones: what is right passes, what is wrong is found by name, and nothing is disturbed."""

import copy
import random

import numpy as np
import pytest
import torch
from odd_models import RIGHT, WRONG, Nan, Nested, Plain, ToBeDropped
from torch import nn

from compresskd import tt
from compresskd.proof import carrying, differing
from compresskd.tt.decompose.modes import nearest_factors
from compresskd.tt.layers.cp import cp_conv, cp_linear
from compresskd.tt.layers.tucker import tucker2_cores, tucker_linear

DENSE = nn.Linear | nn.Conv2d | nn.Embedding
METHODS = ("tensor_train", "svd", "tucker", "cp")
FULL = 10**6


def factorized(layer, method, rank=FULL):
    """At full rank (cp: 8), so that the weight is reconstructed but no layer gets smaller."""
    if isinstance(layer, nn.Embedding):
        modes = ((16, 16), (8, 8)) if method == "tensor_train" else ((256, 1), (1, 64))
        return None if method in ("tucker", "cp") else tt.TTEmbedding.from_dense(layer, *modes)
    if isinstance(layer, nn.Conv2d):
        if method == "cp":
            return cp_conv(layer, 8)
        if method == "tucker":
            return tt.TTConv2d.from_cores(tucker2_cores(layer.weight, rank), layer, [(1, 1), (3, 3), (1, 1)])
        stages = [(3, 1), (1, 3), (1, 1)] if method == "tensor_train" else [(3, 3), (1, 1)]
        return tt.TTConv2d.from_dense(layer, stages)
    dims = [nearest_factors(n, (0.5, 0.5), padding=False) for n in (layer.in_features, layer.out_features)]
    if method == "svd":
        dims = [(1, layer.in_features), (layer.out_features, 1)]
    if method in ("tucker", "cp"):
        return (tucker_linear if method == "tucker" else cp_linear)(
            layer, *dims, rank if method == "tucker" else 8
        )
    return tt.TTLinear.from_dense(layer, *dims)


def trial(model, layers, new, inputs=None, bias=False):
    twins = {name: carrying(layers[name], made, others=bias) for name, made in new.items()}
    return differing(
        model,
        {name: layers[name] for name in new},
        new,
        twins,
        torch.randn(4, 64) if inputs is None else inputs,
    )


def tried(model, method="tensor_train", make=factorized):
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, DENSE)}
    new = {name: made for name, layer in layers.items() if (made := make(layer, method)) is not None}
    return trial(model, layers, new)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_passes(kind, method):
    assert tried(kind(), method) == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_found_by_name(kind, method):
    found = tried(kind(), method)
    if method in ("tucker", "cp") and kind.__name__ in ("Embedded", "Offset"):
        assert found == {}  # there is no such form of an embedding
    else:
        assert found.keys() == {WRONG[kind]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 512])
def test_rounding_alone_is_no_difference(dtype, width):
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(nn.Linear(64, width), *layers, nn.Linear(width, 10)).to(dtype)
    new = {
        name: tt.TTLinear(
            *[nearest_factors(n, (0.5, 0.5), padding=False) for n in (layer.in_features, layer.out_features)],
            8,
        ).to(dtype)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    old = {name: model.get_submodule(name) for name in new}
    twins = {name: carrying(old[name], layer, others=True) for name, layer in copy.deepcopy(new).items()}
    x = torch.randn(4, 64).to(dtype)
    assert differing(model, old, new, twins, x) == {}
    with torch.no_grad():  # one core, by what is small and yet no rounding
        new["0"].cores[0] *= 1 + 20 * torch.finfo(dtype).eps ** 0.5
    assert differing(model, old, new, twins, x).keys() == {"0"}


def test_reasons_say_where_and_how():
    (reason,) = tried(next(k for k in WRONG if k.__name__ == "OnlyInTraining")()).values()
    assert reason.startswith(
        "makes the model answer otherwise in training than the dense layer would: a difference of"
    )
    (reason,) = tried(next(k for k in WRONG if k.__name__ == "Extra")()).values()
    assert reason.startswith("breaks the model in training: TypeError: ")
    (reason,) = tried(next(k for k in WRONG if k.__name__ == "Tanh")()).values()
    assert reason.startswith("makes 'block' answer otherwise in training")


class Broken(nn.Module):
    """A new layer that goes wrong in a way of its own."""

    def __init__(self, layer, how):
        super().__init__()
        self.layer, self.how = layer, how

    def to_dense(self):
        return self.layer.to_dense()

    def structure(self):
        return self.layer.structure()

    @classmethod
    def from_structure(cls, structure):
        return cls(tt.from_structure(structure), None)

    def forward(self, x):
        return self.how(self, self.layer(x))


def once(layer, y):
    """Right at first, then stale: what a cache may do."""
    layer.calls = getattr(layer, "calls", 0) + 1
    return y if layer.calls < 2 else y + 1


@pytest.mark.parametrize(
    "how",
    [
        lambda _, y: y * float("nan"),
        lambda _, y: y * float("inf"),
        lambda _, y: y.double(),
        lambda _, y: y[..., :-1],
        lambda _, y: (y,),
        lambda layer, y: y if layer.training else y * 1.01,
        lambda layer, y: y * 1.01 if layer.training else y,
        lambda layer, y: y * 1.01 if torch.is_inference_mode_enabled() else y,
        lambda layer, y: y * (1 + 0.01 * torch.rand(1)),
        lambda layer, y: 1 / 0,
        once,
    ],
)
def test_every_way_to_be_wrong_is_found(how):
    def make(layer, method):
        new = tt.factorize(layer, rank=2) if layer.out_features == 64 and layer.in_features == 64 else None
        return new and Broken(new, how)

    model = Plain()
    model.inp = nn.Linear(64, 64).requires_grad_(False)
    found = tried(model, make=lambda layer, m: make(layer, m) if layer is model.mid else None)
    assert found.keys() == {"mid"}


def test_what_is_right_beside_what_is_wrong_stays():
    def make(layer, method):
        new = factorized(layer, method)
        return Broken(new, lambda _, y: -y) if layer.out_features == 10 else new

    assert tried(Nested(), make=make).keys() == {"out"}


def test_nan_agrees_with_nothing():
    assert tried(Nan()).keys() == {"inp", "mid", "out"}


def test_nothing_is_disturbed():
    model = ToBeDropped().train()
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    layers = {"mid": model.mid}
    new = {"mid": tt.factorize(model.mid, rank=2)}
    assert trial(model, layers, new, torch.ones(4, 64)) == {}
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert model.training
    assert model.mid is layers["mid"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert new["mid"].inference_bytes == 0


def test_a_shared_layer_is_tried_in_all_its_places():
    model = Plain()
    model.inp = model.mid
    new = {"inp": factorized(model.mid, "tensor_train")}
    assert trial(model, {"inp": model.mid}, new) == {}


@pytest.mark.parametrize("method", METHODS)
def test_a_parametrized_layer_is_carried_by_its_values(method):
    model = Plain()
    nn.utils.parametrizations.weight_norm(model.mid)
    before = model.mid.weight.detach().clone()
    assert tried(model, method) == {}
    assert torch.equal(model.mid.weight, before)  # the copies share a class with it


def test_factorized_layers_that_are_factorized_further():
    model = Plain()
    model.mid = tt.factorize(model.mid, rank=16, method="svd")
    new = {"mid": model.mid.round(4)}
    assert trial(model, {"mid": model.mid}, new) == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(32, 64, bias=False),
        nn.Conv2d(8, 16, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect"),
        nn.Conv2d(8, 16, 3, padding="same", bias=False),
        nn.Embedding(256, 64, padding_idx=2),
    ],
)
def test_ordinary_layers_of_factorized_ones(layer, method):
    if isinstance(layer, nn.Embedding) and method in ("tucker", "cp"):
        return
    conv = isinstance(layer, nn.Conv2d)
    new = tt.factorize(layer, rank=2, method=method) if conv else factorized(layer, method)
    plain = tt.ordinary(new.eval())
    assert type(plain) is type(layer)
    assert not plain.training
    x = (
        torch.arange(9)
        if isinstance(layer, nn.Embedding)
        else torch.randn(2, *((8, 9, 9) if plain.weight.dim() == 4 else (32,)))
    )
    torch.testing.assert_close(plain(x), new(x), rtol=1e-4, atol=1e-5)
    assert (plain.bias is None) == (layer.bias is None) if hasattr(layer, "bias") else True
