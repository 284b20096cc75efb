"""What the tests of model files share: the shipped architectures, and networks with one layer of every kind."""

from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from compresskd import artifact, tt
from compresskd.config.schema import register
from compresskd.config.shipped import conf_dir
from compresskd.layers import surgery
from compresskd.models.build import build
from compresskd.quant.granularity import PerChannel, PerGroup, PerRankSlice, PerTensor
from compresskd.quant.grid import Grid

MLP = {"hidden": [32, 32], "num_classes": 10, "input_shape": [1, 8, 8]}


SHAPES = {"tt_mlp": [1, 8, 8], "tt_lenet_300_100": [1, 28, 28]}  # their modes fix the size of the input


def shape_for(name):
    return SHAPES.get(name, [3, 32, 32])


def inputs_for(name):
    return torch.rand(2, *shape_for(name), generator=torch.Generator().manual_seed(0))


def make(name):
    """The student of conf/model/NAME, for inputs of `shape_for(name)`."""
    register()
    data = [f"data.input_shape={shape_for(name)}".replace(" ", ""), "data.num_classes=10"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [f"student={name}", "data=synthetic", *data])
    node = OmegaConf.to_container(cfg.student, resolve=True)
    options = {k: v for k, v in node.items() if k not in ("_target_", "weights")}
    return build(node["_target_"], options, seed=0)


def shake(model):
    """Values of every tensor, buffers too, that no constructor makes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.1 * torch.rand(tensor.shape, generator=generator) + 0.01)
            else:
                tensor.fill_(3)
    return model


def assert_same(model, again):
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.cpu(), theirs[name]), name
    assert not any(module.training for module in again.modules())
    assert again.spec == model.spec


def mlp():
    return build("compresskd.models.mlp.MLP", MLP, seed=0)


GRIDS = [Grid(bits, kind) for kind in ("symmetric", "affine", "half_integer") for bits in (2, 3, 4, 8)]
GRIDS.append(Grid(2, "ternary"))
GRANULARITIES = [  # of ordinary weights, of cores
    (PerTensor(), PerTensor()),
    (PerChannel(0), PerRankSlice("last")),
    (PerChannel(1), PerRankSlice("first")),
    (PerGroup(7), PerGroup(5)),
]
ABOUT = {
    "class_names": [str(number) for number in range(10)],
    "input_shape": [1, 28, 28],
    "mean": [0.1307],
    "std": [0.3081],
    "data": "mnist",
    "versions": {"compresskd": "0.1.0"},
}


class Zoo(nn.Module):
    """One layer of every kind that is quantized, and a batch norm. Inputs [B, 2, 4, 4], outputs [B, 45]."""

    def __init__(self, *, width: int = 5):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.tt_conv = tt.TTConv2d(3, 4, [(3, 1), (1, 3)], 2, padding=1)
        self.linear = nn.Linear(64, width)
        self.tt_linear = tt.TTLinear([8, 8], [5, 4], 3)
        self.embedding = nn.Embedding(9, 4)
        self.tt_embedding = tt.TTEmbedding(9, 4, [3, 3], [2, 2], 2)

    def forward(self, x):
        x = torch.relu(self.tt_conv(torch.relu(self.norm(self.conv(x))))).flatten(1)
        index = torch.arange(len(x)) % 9
        return torch.cat(
            [self.linear(x), self.tt_linear(x), self.embedding(index), self.tt_embedding(index)], dim=1
        )


TRUST = ("stored_models",)


def zoo(seed):
    """A Zoo of random values, spread over magnitudes, in evaluation mode."""
    model = build("stored_models.Zoo", {}, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                magnitude = 10 ** torch.empty(1).uniform_(-2, 0.5, generator=generator)
                value.copy_(magnitude * torch.randn(value.shape, generator=generator))
        model.norm.running_var.abs_().add_(0.01)
    return model


def factorized(model, rank=4):
    """Every layer that gets smaller at this rank in tensor-train form, in place."""

    def factorize(name, layer):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return None
        new = tt.factorize(layer, rank=rank)
        return None if isinstance(new, tt.Skipped) else new

    surgery.replace(model, factorize)
    return model


def content(model, **about):
    """What is stored of a model, with the usual description of its data."""
    return replace(artifact.content_of(model), about={**ABOUT, **about})


def read_back(stored, tmp_path, trust=()):
    """The content as read back from the folder, and from the compact file with coded and with packed integers."""
    tmp_path.mkdir(exist_ok=True)
    artifact.folder.write(stored, tmp_path)
    artifact.write_compact(stored, tmp_path / "model.ckd", trust=trust)
    artifact.write_compact(stored, tmp_path / "packed.ckd", coded=False, trust=trust)
    return [artifact.read(tmp_path / name, trust=trust) for name in (".", "model.ckd", "packed.ckd")]
