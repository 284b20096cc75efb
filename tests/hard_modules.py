"""Small models that compression must leave right, or refuse to touch and say so.

`build(name)` gives a model [B, 64] or [B, 1, 8, 8] -> [B, 10]; `EXPECTED` says of each which layers stay as they are,
by a word of the reason.
"""

import torch
import torch.nn.functional as F
from torch import nn

from compresskd import layers

WIDTH = 64


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(64, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x):
        return self.out(F.relu(self.mid(F.relu(self.inp(x.flatten(1))))))


class Twins(Plain):
    def forward(self, x):
        x = F.relu(self.inp(x.flatten(1)))
        return self.out(F.relu(self.twin(F.relu(self.mid(x)))))


class Tied(Twins):
    """Two layers, one weight."""

    def __init__(self):
        super().__init__()
        self.twin = nn.Linear(WIDTH, WIDTH)
        self.twin.weight = self.mid.weight


class TiedWithBias(Twins):
    def __init__(self):
        super().__init__()
        self.twin = nn.Linear(WIDTH, WIDTH)
        self.twin.weight, self.twin.bias = self.mid.weight, self.mid.bias


class TiedBiases(Twins):
    """Two weights, one bias."""

    def __init__(self):
        super().__init__()
        self.twin = nn.Linear(WIDTH, WIDTH)
        self.twin.bias = self.mid.bias


class TiedConvolutions(nn.Module):
    """One kernel at two dilations."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.one = nn.Conv2d(16, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False)
        self.two.weight = self.one.weight
        self.out = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.stem(x.reshape(-1, 1, 8, 8)))
        return self.out(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3)))


class LanguageModel(nn.Module):
    """The head has the weight of the embedding."""

    def __init__(self, padding=None, row=None):
        super().__init__()
        self.table = nn.Embedding(60, 16, padding_idx=padding)
        if row is not None:
            with torch.no_grad():
                self.table.weight[padding or 0] = row
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 60, bias=False)
        self.head.weight = self.table.weight
        self.out = nn.Linear(60, 10)

    def forward(self, x):
        ids = (x.flatten(1).sigmoid() * 59).long()
        return self.out(F.gelu(self.head(F.relu(self.inner(self.table(ids).mean(1))))))


class TiedPadding(LanguageModel):
    def __init__(self):
        super().__init__(padding=3, row=0.5)


class Shared(Twins):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.twin = self.mid


class Repeated(nn.Module):
    """One block twice in a list, and its layer under a name of its own."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.blocks = nn.ModuleList([block, block])
        self.inner = block[0]
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.out(self.inner(x))


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * self.in_features**0.5


class Subclass(Plain):
    def __init__(self):
        super().__init__()
        self.mid = ScaledLinear(WIDTH, WIDTH)


class SameLinear(nn.Linear):
    """A subclass whose forward is the same, which its author says."""


layers.register(SameLinear)


class Registered(Plain):
    def __init__(self):
        super().__init__()
        self.mid = SameLinear(WIDTH, WIDTH)


class ScaledEmbedding(nn.Embedding):
    def forward(self, x):
        return super().forward(x) * 8.0


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = ScaledEmbedding(256, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(self.table((x.flatten(1).sigmoid() * 255).long()).mean(1))


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


class Standardized(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.conv, self.out = StandardizedConv(32, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.stem(x.reshape(-1, 1, 8, 8)))
        return self.out(F.relu(self.conv(x)).mean((2, 3)))


class Hooked(Plain):
    def __init__(self):
        super().__init__()
        self.mid.register_forward_hook(lambda module, inputs, output: -output)


class PreHooked(Plain):
    def __init__(self):
        super().__init__()
        self.mid.register_forward_pre_hook(
            lambda module, args, kwargs: ((-args[0],), kwargs), with_kwargs=True
        )


class BackwardHooked(Plain):
    def __init__(self):
        super().__init__()
        self.mid.register_full_backward_hook(lambda module, given, got: (2 * given[0],))


class GradientHooked(Plain):
    """Half of a weight gets no gradient."""

    def __init__(self):
        super().__init__()
        mask = (torch.arange(WIDTH) % 2).unsqueeze(1)
        self.mid.weight.register_hook(lambda gradient: gradient * mask)


class OwnForward(Plain):
    def __init__(self):
        super().__init__()
        plain = self.mid.forward
        self.mid.forward = lambda x: 2 * plain(x)


class Adapted(Plain):
    """A low-rank adapter put on a layer."""

    def __init__(self):
        super().__init__()
        self.mid.adapter = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        x = F.relu(self.inp(x.flatten(1)))
        return self.out(F.relu(self.mid(x) + self.mid.adapter(x)))


class Listed(Plain):
    """The layers are called through a plain list."""

    def __init__(self):
        super().__init__()
        self.stack = [self.inp, self.mid]

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.stack:
            x = F.relu(layer(x))
        return self.out(x)


class Frozen(Plain):
    def __init__(self):
        super().__init__()
        self.mid.requires_grad_(False)


class FrozenBias(Plain):
    def __init__(self):
        super().__init__()
        self.mid.bias.requires_grad_(False)


class Normalized(Plain):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.mid)


class Spectral(Plain):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.mid)


class Doubling(nn.Module):
    def forward(self, weight):
        return 2 * weight


class OwnParametrization(Plain):
    def __init__(self):
        super().__init__()
        nn.utils.parametrize.register_parametrization(self.mid, "weight", Doubling())


class OldNormalized(Plain):
    """weight_norm as a hook, before PyTorch had parametrizations."""

    def __init__(self):
        super().__init__()
        self.mid.register_parameter("weight_v", nn.Parameter(self.mid.weight.detach().clone()))
        self.mid.register_parameter(
            "weight_g", nn.Parameter(self.mid.weight.detach().norm(dim=1, keepdim=True))
        )
        del self.mid.weight
        self.mid.weight = self._weight(self.mid)
        self.mid.register_forward_pre_hook(self._renew)

    @staticmethod
    def _weight(layer):
        return (layer.weight_v * (layer.weight_g / layer.weight_v.norm(dim=1, keepdim=True))).detach()

    @staticmethod
    def _renew(layer, args):
        layer.weight = layer.weight_v * (layer.weight_g / layer.weight_v.norm(dim=1, keepdim=True))


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(32, 32, 2, stride=2), nn.Linear(32, 10)

    def forward(self, x):
        return self.out(F.relu(self.up(F.relu(self.conv(x.reshape(-1, 1, 8, 8))))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(8, WIDTH, batch_first=True), nn.Linear(WIDTH, 10)

    def forward(self, x):
        _, (h, _) = self.rnn(x.reshape(-1, 8, 8))
        return self.out(h[-1])


class Attending(nn.Module):
    """MultiheadAttention holds its projections as one bare parameter, and reads `out_proj.weight`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.attention, self.out = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 10)

    def forward(self, x):
        x = self.embed(x.reshape(-1, 8, 8))
        return self.out(self.attention(x, x, x)[0].mean(1))


class TransposedLinear(nn.Module):
    """As transformers' Conv1D: the weight is [in, out]."""

    def __init__(self, num_outputs, num_inputs):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Transposed(Plain):
    def __init__(self):
        super().__init__()
        self.mid = TransposedLinear(WIDTH, WIDTH)


class Bare(Plain):
    """Experts as one bare parameter of the model, and a matrix that is a buffer."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(0.1 * torch.randn(2, WIDTH, WIDTH))
        self.register_buffer("fixed", torch.eye(WIDTH))

    def forward(self, x):
        x = F.relu(self.inp(x.flatten(1)))
        return self.out(F.relu(self.mid(x @ self.experts[0] @ self.fixed)) @ self.experts[1])


class TiedWithBare(Plain):
    """The parent holds the very parameter of a layer, too."""

    def __init__(self):
        super().__init__()
        self.same = self.mid.weight

    def forward(self, x):
        x = F.relu(self.inp(x.flatten(1)))
        return self.out(F.relu(self.mid(x)) @ self.same)


class OneDimensional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(8, 32, 3), nn.Linear(32, 10)

    def forward(self, x):
        return self.out(F.relu(self.conv(x.reshape(-1, 8, 8))).mean(2))


class Padded(nn.Module):
    """An embedding whose padding row is not zero."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 64, padding_idx=0)
        with torch.no_grad():
            self.table.weight[0] = 1.0
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        ids = (x.flatten(1) * 16).long().clamp(0, 255)
        return self.out(self.table(ids).mean(1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, padding_mode="reflect")
        self.conv, self.out = nn.Conv2d(16, 16, 3, groups=4), nn.Linear(16, 10)

    def forward(self, x):
        return self.out(F.relu(self.conv(F.relu(self.stem(x.reshape(-1, 1, 8, 8))))).mean((2, 3)))


class Double(Plain):
    """Computes in float64."""

    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x):
        return super().forward(x.double()).float()


MODELS = {
    cls.__name__.lower(): cls
    for cls in (
        Plain, Tied, TiedWithBias, TiedBiases, TiedConvolutions, LanguageModel, TiedPadding, Shared, Repeated,
        Subclass, Registered, Scaled, Standardized, Hooked, PreHooked, BackwardHooked, GradientHooked,
        OwnForward, Adapted, Listed, Frozen, FrozenBias, Normalized, Spectral, OwnParametrization,
        OldNormalized, Upsampling, Recurrent, Attending, Transposed, Bare, TiedWithBare, OneDimensional,
        Padded, Grouped, Double,
    )
}  # fmt: skip

# of each model the layers that stay dense whatever the method, with a word of the reason
EXPECTED = {
    "subclass": {"mid": "ScaledLinear is a subclass"},
    "scaled": {"table": "ScaledEmbedding is a subclass"},
    "standardized": {"conv": "StandardizedConv is a subclass"},
    "hooked": {"mid": "forward hook"},
    "prehooked": {"mid": "forward pre-hook"},
    "backwardhooked": {"mid": "backward hook"},
    "gradienthooked": {"mid": "hook on its gradient"},
    "ownforward": {"mid": "its forward was replaced"},
    "adapted": {"mid": "adapter was added"},
    "listed": {"inp": "'stack' holds it outside", "mid": "'stack' holds it outside"},
    "oldnormalized": {"mid": "forward pre-hook"},
    "attending": {"attention.out_proj": "nn.MultiheadAttention reads its weight"},
    "tiedwithbare": {"mid": "its weight is 'same' as well"},
    "grouped": {"conv": "groups=4"},
}


def build(name, num_classes=10):
    return MODELS[name]()
