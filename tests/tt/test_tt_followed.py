"""Layers under those who follow what is computed (compilers have tests of their own), under autocast and on meta."""

import copy

import pytest
import torch
from factorized_layers import CASES
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

NO_GRADIENT = pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])


def warm(case):
    """A layer that has answered before, so that it keeps something."""
    layer, x = CASES[case].make().eval(), CASES[case].x
    with torch.no_grad():
        layer(x)
    return layer, x


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@NO_GRADIENT
@pytest.mark.parametrize("case", CASES)
def test_vmap_over_stacked_layers_and_over_inputs(case, mode):
    layers = [CASES[case].make().eval() for _ in range(3)]
    x = CASES[case].x
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    with mode():
        expected = torch.stack([layer(x) for layer in layers])
        stacked = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), (0, 0, None))
        close(stacked(parameters, buffers, x), expected)
        close(vmap(layers[0])(torch.stack([x, x]))[1], expected[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own forward mode calls it
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_functions_and_forward_mode(case):
    layer, x = warm(case)
    own = {name: p.detach() for name, p in layer.named_parameters()}
    moved = {name: torch.randn_like(p) for name, p in own.items()}

    def loss(parameters):
        return functional_call(layer, parameters, (x,)).square().mean()

    layer(x).square().mean().backward()
    expected = {name: p.grad for name, p in layer.named_parameters()}
    found = grad(loss)(own)
    for name, value in expected.items():
        close(found[name], value)
    slope = sum((expected[name] * moved[name]).sum() for name in own)
    close(jvp(loss, (own,), (moved,))[1], slope)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(own[name], moved[name]) for name in own}
            close(forward_ad.unpack_dual(loss(dual)).tangent, slope)


@NO_GRADIENT
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_jit_trace(case, mode):
    layer, x = warm(case)
    with mode():
        traced = torch.jit.trace(layer, x)
        more = torch.cat([x, x, x])
        close(traced(more), layer(more))


@NO_GRADIENT
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # of torch's own conversion
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_meta_and_fake_tensors(case, autocast, mode):
    layer, x = warm(case)
    with mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = layer(x)
        assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == expected.shape
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            assert layer(fake.from_tensor(x)).shape == expected.shape


@NO_GRADIENT
@pytest.mark.parametrize("case", CASES)
def test_autocast_gives_what_it_gives_for_a_dense_layer(case, mode):
    layer, x = warm(case)
    with mode():
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            answer = layer(x)
        assert answer.dtype == (expected.dtype if "embedding" in case else torch.bfloat16)
        torch.testing.assert_close(
            answer.float(), expected, rtol=0.05, atol=0.05 * float(expected.detach().abs().max())
        )
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("case", CASES)
def test_float64_trains_and_answers(case):
    layer, x = CASES[case].make().double(), CASES[case].x
    x = x.double() if x.is_floating_point() else x
    trained = layer(x)
    trained.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), trained.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plan", range(3))
@pytest.mark.parametrize("case", CASES)
def test_an_activation_in_place_follows(case, plan):
    """nn.ReLU(inplace=True) after a layer, as most models write it; at several batches, so by several plans."""
    layer, x = CASES[case].make().train(), CASES[case].x
    x = torch.cat([x] * 3**plan)
    gradients = []
    for activation in (nn.ReLU(), nn.ReLU(inplace=True)):
        layer.zero_grad()
        activation(layer(x)).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for expected, found in zip(*gradients, strict=True):
        assert torch.equal(expected, found)
