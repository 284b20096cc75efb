import pytest
import torch
from torch import nn

from compresskd.tt import TTConv2d, TTEmbedding, TTLinear, factorize

pytestmark = pytest.mark.slow

LAYERS = {
    "linear": (
        lambda: TTLinear((4, 8), (8, 4), 3, in_features=30, out_features=31),
        lambda B: torch.randn(B, 30),
    ),
    "linear_3d": (lambda: TTLinear((2, 3, 5), (5, 3, 2), 3, bias=False), lambda B: torch.randn(B, 7, 30)),
    "svd": (lambda: TTLinear((1, 32), (24, 1), 4), lambda B: torch.randn(B, 32)),
    "conv": (
        lambda: TTConv2d(4, 6, ((1, 1), (3, 3), (1, 1)), 3, padding=1, stride=2),
        lambda B: torch.randn(B, 4, 8, 8),
    ),
    "conv_reflect": (
        lambda: TTConv2d(4, 6, ((3, 1), (1, 3)), 3, padding=1, padding_mode="reflect"),
        lambda B: torch.randn(B, 4, 8, 8),
    ),
    "embedding": (
        lambda: TTEmbedding(60, 24, (3, 4, 5), (4, 3, 2), 3, padding_idx=0),
        lambda B: torch.randint(0, 60, (B, 5)),
    ),
    "embedding_svd": (
        lambda: TTEmbedding(60, 24, (60, 1), (1, 24), 3),
        lambda B: torch.randint(0, 60, (B, 5)),
    ),
    "tucker": (lambda: factorize(nn.Linear(30, 42), rank=3, method="tucker"), lambda B: torch.randn(B, 30)),
    "cp": (lambda: factorize(nn.Linear(30, 42), rank=3, method="cp"), lambda B: torch.randn(B, 30)),
    "cp_conv": (
        lambda: factorize(nn.Conv2d(4, 6, 3, padding=1), rank=3, method="cp"),
        lambda B: torch.randn(B, 4, 8, 8),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_exports_with_a_dynamic_batch(name):
    make, sample = LAYERS[name]
    layer = make().eval()
    program = torch.export.export(layer, (sample(3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for B in (2, 3, 17):
        x = sample(B)
        with torch.no_grad():
            assert torch.allclose(program.module()(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv", "embedding"])
def test_compiles_without_graph_breaks_forward_and_backward(name):
    make, sample = LAYERS[name]
    layer = make()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for B in (3, 5):
        x = sample(B)
        y = compiled(x)
        assert torch.allclose(y, layer(x), atol=1e-5)
        ours = torch.autograd.grad(y.square().sum(), list(layer.cores))
        theirs = torch.autograd.grad(layer(x).square().sum(), list(layer.cores))
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "conv", "embedding"])
def test_functional_call_and_vmap_over_parameters(name):
    make, sample = LAYERS[name]
    layer, x = make(), sample(4)
    doubled = {key: 2 * value.detach() for key, value in layer.state_dict().items()}
    with torch.no_grad():
        before = layer(x)
        changed = torch.func.functional_call(layer, doubled, (x,))
        assert not torch.allclose(before, changed)
        assert torch.allclose(layer(x), before)
