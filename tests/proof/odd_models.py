"""Small models [B, 64] -> [B, 10] whose layers cannot all be exchanged, each in its own way; `WRONG` says which."""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 64


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(64, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x):
        return self.out(F.relu(self.mid(F.relu(self.inp(x)))))


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * self.in_features**0.5


class Subclass(Plain):
    def __init__(self):
        super().__init__()
        self.mid = ScaledLinear(WIDTH, WIDTH)


class SubtlyScaled(Plain):
    """A thousandth beside: far above rounding."""

    def __init__(self):
        super().__init__()
        self.mid = type("Subtle", (nn.Linear,), {"forward": lambda s, x: nn.Linear.forward(s, x) * 1.001})(
            64, 64
        )


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


class SamePaddedConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Standardized(nn.Module):
    conv = StandardizedConv

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.mid, self.out = self.conv(32, 32, 3), nn.Linear(32, 10)

    def forward(self, x):
        return self.out(F.relu(self.mid(F.relu(self.stem(x.reshape(-1, 1, 8, 8))))).mean((2, 3)))


class SamePadded(Standardized):
    conv = SamePaddedConv


class ScaledEmbedding(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * self.embedding_dim**0.5


class OffsetEmbedding(nn.Embedding):
    """As positions of some language models: ids are shifted inside."""

    def forward(self, ids):
        return super().forward(ids + 2)


class Embedded(nn.Module):
    table = ScaledEmbedding

    def __init__(self):
        super().__init__()
        self.mid, self.out = self.table(256, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(self.mid((x * 16).long().clamp(0, 200)).mean(1))


class Offset(Embedded):
    table = OffsetEmbedding


class Hooked(Plain):
    def __init__(self):
        super().__init__()
        self.mid.register_forward_hook(lambda module, inputs, output: -output)


class HookedBefore(Plain):
    def __init__(self):
        super().__init__()
        self.mid.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


class OnlyInTraining(Plain):
    def __init__(self):
        super().__init__()

        def hook(module, inputs, output):
            return -output if module.training else output

        self.mid.register_forward_hook(hook)


class Extra(Plain):
    """Gives its layer an argument that others do not take."""

    def __init__(self):
        super().__init__()
        self.mid = type("Masked", (nn.Linear,), {"forward": lambda s, x, mask=None: nn.Linear.forward(s, x)})(
            64, 64
        )

    def forward(self, x):
        return self.out(F.relu(self.mid(F.relu(self.inp(x)), mask=None)))


class Judged(Plain):
    """Asks what kind of layer it has."""

    def forward(self, x):
        y = F.relu(self.mid(F.relu(self.inp(x))))
        return self.out(y if isinstance(self.mid, nn.Linear) else -y)


class Counted(Plain):
    """What it answers depends on how many parameters it has."""

    def forward(self, x):
        return super().forward(x) + 1e-3 * sum(1 for _ in self.mid.parameters())


class ToBeDropped(Plain):
    """Random in training, and with running statistics: neither may disturb the trial, nor the trial them."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)

    def forward(self, x):
        return self.out(self.drop(F.relu(self.norm(self.mid(self.drop(F.relu(self.inp(x))))))))


class Listed(nn.Module):
    """The parents of its layers, a list and a sequence, are never called themselves; one layer is called twice."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(2)])
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        for block in self.blocks:
            for layer in block:
                x = layer(x)
        return {"logits": self.out(x), "again": (self.blocks[0][0](x[:1]), None, 3)}


class Block(nn.Module):
    def __init__(self, layer=nn.Linear):
        super().__init__()
        self.mid = layer(64, 64)

    def forward(self, x, *, scale, into=None):
        x.mul_(scale)  # writes into what it is given
        y = self.mid(x)
        return (y, into)


class Nested(nn.Module):
    """A parent with keywords, called twice, which writes into its input."""

    def __init__(self, layer=nn.Linear):
        super().__init__()
        self.inp, self.block, self.out = nn.Linear(64, 64), Block(layer), nn.Linear(64, 10)

    def forward(self, x):
        y, _ = self.block(self.inp(x), scale=0.5)
        y, _ = self.block(y, scale=2.0, into=torch.ones(2))
        return self.out(y)


class NestedScaled(Nested):
    def __init__(self):
        super().__init__(ScaledLinear)


class Tanh(nn.Module):
    """Sees nothing of what goes wrong inside, but for the parent of the layer."""

    def __init__(self):
        super().__init__()
        self.block, self.out = Block(ScaledLinear), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(torch.sign(self.block(x.clone(), scale=1.0)[0]))


class Nan(Plain):
    def forward(self, x):
        return super().forward(x) / 0.0 * 0.0


class Encoder(nn.Module):
    def __init__(self, layer=None):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) if layer is None else layer
        self.out = nn.Linear(32, 10)

    def forward(self, x):
        return self.out(self.encoder(self.embed(x.reshape(-1, 8, 8))).mean(1))


class MaskedEncoder(Encoder):
    """nn.TransformerEncoder itself looks at the weights of the layers in its first layer."""

    def __init__(self):
        super().__init__(nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2))

    def forward(self, x):
        x = x.reshape(-1, 8, 8)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[:, 6:] = True
        return self.out(self.encoder(self.embed(x), src_key_padding_mask=mask)[:, :6].mean(1))


class Decoder(Encoder):
    def __init__(self):
        super().__init__(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True))

    def forward(self, x):
        x = self.embed(x.reshape(-1, 8, 8))
        return self.out(self.encoder(x, x).mean(1))


class DtypeReader(Plain):
    """As T5: the input takes the dtype of the weight."""

    def forward(self, x):
        x = F.relu(self.inp(x))
        return self.out(F.relu(self.mid(x.to(self.mid.weight.dtype))))


class EvaluationReader(Plain):
    """A fast path of its own, in evaluation only, whatever else it may find."""

    def forward(self, x):
        if not torch.is_grad_enabled() and not self.training and hasattr(self.mid, "weight"):
            return self.out(F.relu(F.linear(F.relu(self.inp(x)), self.mid.weight, self.mid.bias)))
        return super().forward(x)


class TrainingReader(Plain):
    def forward(self, x):
        y = super().forward(x)
        return y + 0 * self.mid.weight.sum() if self.training else y


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.mid, self.out = nn.Embedding(256, 64), nn.Linear(256, 10)

    def forward(self, x):
        h = self.mid((x * 16).long().clamp(0, 255)).mean(1)
        return self.out(F.linear(h, self.mid.weight))


class BiasReader(Plain):
    """Every form of a layer has a bias."""

    def forward(self, x):
        return super().forward(x) + 0 * self.mid.bias.sum()


class ShapeAsker(Plain):
    def forward(self, x):
        assert x.shape[1] == self.inp.in_features == self.mid.out_features
        return super().forward(x)


RIGHT = (DtypeReader, Plain, ToBeDropped, Listed, Nested, BiasReader, ShapeAsker)
WRONG = {
    Subclass: "mid",
    SubtlyScaled: "mid",
    Standardized: "mid",
    SamePadded: "mid",
    Embedded: "mid",
    Offset: "mid",
    Hooked: "mid",
    HookedBefore: "mid",
    OnlyInTraining: "mid",
    Extra: "mid",
    Judged: "mid",
    NestedScaled: "block.mid",
    Tanh: "block.mid",
}
READ = {
    Encoder: {"encoder.linear1", "encoder.linear2", "encoder.self_attn.out_proj"},
    MaskedEncoder: {
        f"encoder.layers.{k}.{n}" for k in (0, 1) for n in ("linear1", "linear2", "self_attn.out_proj")
    },
    Decoder: {"encoder.self_attn.out_proj", "encoder.multihead_attn.out_proj"},
    EvaluationReader: {"mid"},
    TrainingReader: {"mid"},
    TiedHead: {"mid"},
}
