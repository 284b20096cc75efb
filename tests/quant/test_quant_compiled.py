"""Compressed layers under torch's other ways to run a model: traced whole, with the same values and gradients."""

import copy

import pytest
import torch
from torch import nn

from compresskd import tt
from compresskd.quant.activation import calibrate
from compresskd.quant.prepare import QuantSpec, prepare

# what torch's compiler itself does to a function with gradients
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

X = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
SPECS = {
    "float": None,
    "learned step": QuantSpec(bits=4),
    "straight-through": QuantSpec(bits=4, estimator="straight_through"),
    "groups": QuantSpec(bits=3, grid="affine"),
}


def model_of(spec):
    torch.manual_seed(0)
    layer = tt.factorize(nn.Linear(16, 12), modes=[[4, 4], [3, 4]], ranks=[3])
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(12, 4))
    if spec is not None:
        prepare(model, spec)
    return model


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_training_compiles_without_a_break(spec):
    model = model_of(spec)
    other = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(X).square().sum().backward()
    other(X).square().sum().backward()
    grads = [(a.grad, b.grad) for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    assert all(a is not None for a, _ in grads)
    for a, b in grads:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_inference_is_exported_and_mapped(spec):
    model = model_of(spec).eval()
    with torch.no_grad():
        expected = model(X)
        torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected)
        torch.testing.assert_close(torch.func.vmap(model)(X.reshape(2, 3, 16)).reshape(6, 4), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # bounds of zero points
def test_rounded_inputs_are_mapped():
    model = model_of(QuantSpec(bits=4, activation_bits=8))
    calibrate(model, [X])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(model)(X.reshape(2, 3, 16)).reshape(6, 4), model(X))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_gradients_of_a_functional_call(spec):
    model = model_of(spec).eval()
    values = {name: p.detach() for name, p in model.named_parameters()}
    found = torch.func.grad(lambda v: torch.func.functional_call(model, v, (X,)).square().sum())(values)
    model(X).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad)
