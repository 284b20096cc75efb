"""Multiply-accumulates against formulas written by hand here, and what is unknown instead of zero."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from compresskd import tt
from compresskd.measure import macs
from compresskd.models.build import build
from compresskd.tt.execution.contraction import all_cuts, steps


class Of(nn.Module):
    """A function of a module and its input."""

    def __init__(self, function, *modules):
        super().__init__()
        self.inner, self.function = nn.ModuleList(modules), function

    def forward(self, x):
        return self.function(x, *self.inner)


def linear(rows, inputs, outputs):
    return rows * inputs * outputs


def convolution(positions, inputs, outputs, kernel, groups=1):
    return positions * inputs * outputs * kernel // groups


def attention(heads, queries, keys, width):
    """Scores and their use, each queries x keys x width of a head."""
    return 2 * heads * queries * keys * width


def encoder(tokens, width, hidden, heads):
    projections = linear(tokens, width, 3 * width) + linear(tokens, width, width)
    feed_forward = linear(tokens, width, hidden) + linear(tokens, hidden, width)
    return projections + attention(heads, tokens, tokens, width // heads) + feed_forward


def recurrent(steps, inputs, hidden, gates, directions=1):
    return directions * steps * gates * hidden * (inputs + hidden)


def vit(image, patch, width, depth, heads, ratio, classes, channels=3):
    patches = (image // patch) ** 2
    tokens = patches + 1
    return (
        linear(patches, channels * patch**2, width)
        + depth * encoder(tokens, width, ratio * width, heads)
        + linear(1, width, classes)
    )


class Bert(nn.Module):
    """Token and position embeddings, two encoder blocks, the first token's class."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(100, 48), nn.Embedding(12, 48)
        block = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(block, 2)
        self.pooler, self.head = nn.Linear(48, 48), nn.Linear(48, 3)

    def forward(self, ids):
        x = self.blocks(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
        return self.head(self.pooler(x[:, 0]).tanh())


class Fused(nn.Module):
    def forward(self, x):
        q = x.unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*q, is_causal=True)


def _vit():
    kwargs = {"depth": 2, "width": 48, "num_classes": 10, "input_shape": [3, 32, 32]}
    return build("compresskd.models.vit.VisionTransformer", kwargs, seed=0)


def _lenet():
    kwargs = {"hidden": [300, 100], "num_classes": 10, "input_shape": [1, 28, 28]}
    return build("compresskd.models.mlp.MLP", kwargs, seed=0)


def _resnet():
    kwargs = {"depth": 8, "num_classes": 10, "input_shape": [3, 32, 32]}
    return build("compresskd.models.resnet.ResNet", kwargs, seed=0)


def _ids(*shape):
    return torch.zeros(*shape, dtype=torch.int64)


first = lambda x, module: module(x)[0]  # noqa: E731 - recurrent modules return a tuple

MODELS = {
    "lenet-300-100": (_lenet, torch.zeros(1, 1, 28, 28), 784 * 300 + 300 * 100 + 100 * 10),
    "a small ResNet": (
        _resnet,
        torch.zeros(1, 3, 32, 32),
        convolution(1024, 3, 16, 9) + 2 * convolution(1024, 16, 16, 9)
        + convolution(256, 16, 32, 9) + convolution(256, 32, 32, 9)
        + convolution(64, 32, 64, 9) + convolution(64, 64, 64, 9) + linear(1, 64, 10),
    ),
    "a ViT of this package": (_vit, torch.zeros(1, 3, 32, 32), vit(32, 4, 48, 2, 3, 4, 10)),
    "a BERT of torch's modules": (Bert, _ids(1, 12), 2 * encoder(12, 48, 96, 4) + 48 * 48 + 48 * 3),
    "an encoder layer": (
        lambda: nn.TransformerEncoderLayer(64, 4, 128), torch.zeros(100, 1, 64), 4_556_800
    ),
    "multi-head attention": (
        lambda: Of(lambda x, m: m(x, x, x)[0], nn.MultiheadAttention(64, 4)), torch.zeros(100, 1, 64), 2_918_400
    ),
    "a decoder layer, attending to itself and to a memory": (
        lambda: Of(lambda x, m: m(x, x[:, :6]), nn.TransformerDecoderLayer(32, 2, 64, batch_first=True)),
        torch.zeros(1, 10, 32),
        encoder(10, 32, 64, 2) + linear(10, 32, 32) * 2 + linear(6, 32, 64) + attention(2, 10, 6, 16),
    ),
    "fused attention with a causal mask": (Fused, torch.zeros(1, 7, 96), attention(4, 7, 7, 8)),
    "an LSTM": (lambda: Of(first, nn.LSTM(16, 32)), torch.zeros(10, 1, 16), 61_440),
    "an LSTM of two layers, both ways, projected": (
        lambda: Of(first, nn.LSTM(8, 12, num_layers=2, bidirectional=True, proj_size=5)),
        torch.zeros(6, 1, 8),
        2 * 6 * (4 * 12 * (8 + 5) + 12 * 5) + 2 * 6 * (4 * 12 * (10 + 5) + 12 * 5),
    ),
    "a GRU both ways": (
        lambda: Of(first, nn.GRU(16, 32, bidirectional=True, batch_first=True)),
        torch.zeros(1, 9, 16), recurrent(9, 16, 32, 3, 2),
    ),
    "a plain RNN": (lambda: Of(first, nn.RNN(4, 6)), torch.zeros(5, 1, 4), recurrent(5, 4, 6, 1)),
    "an LSTM cell": (lambda: Of(first, nn.LSTMCell(4, 6)), torch.zeros(1, 4), recurrent(1, 4, 6, 4)),
    "grouped, dilated and strided convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 12, 3, dilation=2, groups=4), nn.Conv2d(12, 6, 2, 2)
        ),
        torch.zeros(1, 8, 12, 12),
        convolution(144, 8, 8, 9, 8) + convolution(64, 8, 12, 9, 4) + convolution(16, 12, 6, 4),
    ),
    "one and three dimensions": (
        lambda: Of(lambda x, a, b: b(a(x).reshape(1, 2, 3, 3, 3)), nn.Conv1d(3, 6, 4), nn.Conv3d(2, 5, 2)),
        torch.zeros(1, 3, 12), convolution(9, 3, 6, 4) + convolution(8, 2, 5, 8),
    ),
    "transposed convolutions": (
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), nn.ConvTranspose2d(4, 2, 2)),
        torch.zeros(1, 6, 5, 5), convolution(25, 6, 4, 9, 2) + convolution(121, 4, 2, 4),
    ),
    "a bilinear form": (lambda: Of(lambda x, m: m(x, x[:, :4]), nn.Bilinear(8, 4, 9)), torch.zeros(1, 8), 288),
    "an einsum over heads": (
        lambda: Of(lambda x: torch.einsum("bqhd,bkhd->bhqk", x, x)), torch.zeros(1, 7, 3, 5), 3 * 7 * 7 * 5
    ),
    "a product of batches, broadcast": (
        lambda: Of(lambda x: torch.matmul(x, torch.zeros(4, 3, 6, 2))), torch.zeros(3, 5, 6), 4 * 3 * 5 * 6 * 2
    ),
    "matrix times vector, and an added product of batches": (
        lambda: Of(lambda x: torch.baddbmm(torch.zeros(1, 5, 4), x, torch.zeros(1, 6, 4))[0].mv(torch.zeros(4))),
        torch.zeros(1, 5, 6), 5 * 6 * 4 + 5 * 4,
    ),
    "bags of embeddings": (lambda: nn.EmbeddingBag(10, 4), _ids(1, 3), 0),
    "bags of embeddings with factors": (
        lambda: Of(lambda x, m: m(x, per_sample_weights=torch.ones(1, 3)), nn.EmbeddingBag(10, 4, mode="sum")),
        _ids(1, 3), 12,
    ),
    "a parametrized layer": (lambda: weight_norm(nn.Linear(7, 3)), torch.zeros(1, 7), 21),
    "nothing but element-wise work": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.GELU(), nn.Softmax(1), nn.Flatten()),
        torch.zeros(1, 3, 4, 4), 0,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("make", "example", "expected"), MODELS.values(), ids=MODELS)
def test_a_model_against_a_formula_by_hand(make, example, expected):
    assert macs.count(make(), example) == macs.Macs(expected)


def test_the_formula_of_each_fused_kernel_of_attention():
    """The same number where a model insists on a fused kernel."""

    class Insisting(Fused):
        def forward(self, x):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                return super().forward(x)

    assert macs.count(Insisting(), torch.zeros(1, 7, 96)).number == attention(4, 7, 7, 8)


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs()


class Solving(nn.Module):
    def forward(self, x):
        return torch.linalg.solve(torch.eye(x.shape[1]), x[..., None])[..., 0]


class Stubborn(nn.Module):
    """Runs but once it is watched."""

    def forward(self, x):
        if not torch.backends.mha.get_fastpath_enabled():
            raise RuntimeError("no")
        return x


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Fourier(), "no formula for aten::_fft_r2c"),
        (nn.Sequential(nn.Linear(4, 4), Fourier()), "no formula for aten::_fft_r2c"),
        (Solving(), "no formula for aten::_linalg_check_errors, aten::_linalg_solve_ex"),
        (Stubborn(), "the forward pass cannot be watched (RuntimeError: no)"),
    ],
)
def test_what_has_no_formula_is_unknown_and_named(model, reason):
    counted = macs.count(model, torch.zeros(1, 4))
    assert counted == macs.Macs(None, reason)


def test_an_operator_of_somebody_else_is_unknown():
    library = torch.library.Library("compresskd_test", "FRAGMENT")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x.clone(), "CPU")
    model = Of(torch.ops.compresskd_test.mystery)
    assert macs.count(model, torch.zeros(1, 4)).unknown == "no formula for compresskd_test::mystery"


class TestFactorized:
    """By the least contraction, or the dense weight where that is less: not by the plan that this machine prefers."""

    def least(self, layer):
        shapes = [tuple(core.shape) for core in layer.cores]
        return min(
            sum(s.a * s.b * s.P * s.C for s in steps(shapes, cuts, from_right=right))
            for cuts in all_cuts(len(shapes))
            for right in (True, False)
        )

    def test_two_cores_cost_their_parameters(self):
        layer = tt.factorize(nn.Linear(1024, 1024), rank=4, modes=((1024, 1), (1, 1024)))
        assert macs.count(nn.Sequential(layer), torch.zeros(1, 1024)).number == 2 * 1024 * 4

    def test_never_more_than_the_dense_layer(self):
        layer = tt.TTLinear((4, 4), (4, 4), 16)
        assert macs.count(layer, torch.zeros(3, 16)).number == 3 * 256

    @pytest.mark.parametrize("rank", [1, 3, 9])
    def test_three_cores(self, rank):
        layer = tt.TTLinear((4, 6, 5), (3, 8, 7), rank)
        expected = min(self.least(layer), 120 * 168)
        for rows in (1, 5):
            assert macs.count(layer, torch.zeros(rows, 120)).number == rows * expected

    @pytest.mark.parametrize("ranks", [[2], [24]])
    def test_a_convolution_is_the_least_of_its_stages_and_its_kernel(self, ranks):
        """Rows of the kernel, then columns: each at all 6 x 6 positions, since its own padding keeps them."""
        layer = tt.TTConv2d.from_dense(nn.Conv2d(8, 12, 3, padding=1), ((3, 1), (1, 3)), ranks=ranks)
        chain, dense = 36 * sum(core.numel() for core in layer.cores), convolution(36, 8, 12, 9)
        assert (chain < dense) == (ranks == [2])
        assert macs.count(layer, torch.zeros(2, 8, 6, 6)).number == 2 * min(chain, dense)

    def test_canonical_factors_count_what_they_multiply_element_by_element(self):
        layer = tt.CPLinear((4, 6), (3, 5), 2)
        assert macs.count(layer, torch.zeros(1, 24)).number == 2 * (4 * 6 + 4 + 3 + 3 * 5)

    def test_cores_that_are_rounded_in_training_count_alike(self):
        layer = tt.TTLinear((4, 6, 5), (3, 8, 7), 3)
        before = macs.count(layer, torch.zeros(1, 120))
        for name in list(dict(layer.cores.named_parameters())):
            torch.nn.utils.parametrize.register_parametrization(layer.cores, name, nn.Identity())
        assert macs.count(layer, torch.zeros(1, 120)) == before


def test_everything_is_as_it_was_afterwards():
    model = nn.Sequential(nn.Dropout(), nn.Linear(4, 2), tt.TTLinear((2,), (2,), 1)).train()
    model[0].eval()
    flags = lambda: (  # noqa: E731
        torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled(),
    )  # fmt: skip
    before, state = flags(), torch.get_rng_state()
    macs.count(model, torch.zeros(1, 4))
    assert flags() == before
    assert [m.training for m in model] == [False, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_compiled_model_counts_as_it_is_written():
    counted = macs.count(torch.compile(nn.Linear(6, 5), backend="eager"), torch.zeros(1, 6))
    assert counted == macs.Macs(30)
    assert "torch._dynamo" in sys.modules
