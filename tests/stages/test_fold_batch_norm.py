"""Folding batch norms is exact in evaluation mode, whatever the layer before them, and refused where it is not."""

import pytest
import torch
from torch import nn

from compresskd import artifact, tt
from compresskd.layers import surgery
from compresskd.models.build import build
from compresskd.models.folded import FoldedBatchNorm
from compresskd.stages.fold_batch_norm import fold_batch_norms, with_statistics

SHAPE = {"num_classes": 4, "input_shape": [3, 16, 16]}
ARCHITECTURES = {
    "resnet20": ("compresskd.models.resnet.ResNet", {"depth": 20}),
    "wide": ("compresskd.models.wide_resnet.WideResNet", {"depth": 16, "width": 1}),
}


def trained(path, options, factorized=()):
    """A network whose norms have something to say."""
    model = build(path, {**options, **SHAPE}, seed=0)
    for name in factorized:
        layer = tt.factorize(model.get_submodule(name), rank=3)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    model = with_statistics(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("factorized", [(), ("layer2.1.conv1",)], ids=["dense", "tensor train"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folding_is_exact(name, factorized):
    if factorized and name == "wide":
        factorized = ("block2.layer.1.conv1",)
    model = trained(*ARCHITECTURES[name], factorized)
    x = torch.randn(8, 3, 16, 16)
    before = model(x)
    num_values = sum(v.numel() for v in model.state_dict().values())
    assert fold_batch_norms(model, x[:2]) == sum(isinstance(m, FoldedBatchNorm) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    assert sum(v.numel() for v in model.state_dict().values()) < num_values


def test_only_a_shift_is_left_after_a_convolution():
    model = trained(*ARCHITECTURES["resnet20"])
    fold_batch_norms(model, torch.randn(2, 3, 16, 16))
    assert all(
        m.scale is None and m.bias is not None for m in model.modules() if isinstance(m, FoldedBatchNorm)
    )


class ActivatedNorm(nn.BatchNorm1d):
    """As timm's: the activation is the norm's."""

    def forward(self, x):
        return super().forward(x).relu()


def test_a_norm_after_a_convolution_of_one_dimension_and_one_that_does_more():
    convolution = nn.Conv1d(3, 8, 3)
    for first in (convolution, tt.factorize(convolution, rank=3)):
        model = nn.Sequential(first, nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3), ActivatedNorm(8), nn.Flatten())
        model = with_statistics(model, torch.Generator().manual_seed(0)).eval()
        x = torch.randn(4, 3, 9)
        before = model(x)
        assert fold_batch_norms(model, x) == 1
        assert model[1].scale is None
        assert type(model[3]) is ActivatedNorm
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_a_folded_network_is_stored_and_read_back(tmp_path):
    model = trained(*ARCHITECTURES["resnet20"], ("layer3.0.conv2",))
    x = torch.randn(2, 3, 16, 16)
    fold_batch_norms(model, x)
    artifact.save(model, tmp_path / "model")
    reloaded = artifact.load(tmp_path / "model")
    assert surgery.structure(reloaded) == surgery.structure(model)
    torch.testing.assert_close(reloaded(x), model(x))


class Shared(nn.Module):
    """A norm beside which the convolution's output is read again."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return (self.norm(x) + x).mean((2, 3))


class InPlace(Shared):
    def forward(self, x):
        return self.norm(self.conv(x).relu_()).mean((2, 3))


class Twice(Shared):
    def forward(self, x):
        return (self.norm(self.conv(x)) + self.norm(self.conv(-x))).mean((2, 3))


@pytest.mark.parametrize("architecture", [Shared, InPlace, Twice])
def test_a_norm_keeps_its_scale_where_its_input_is_read_or_changed_elsewhere(architecture):
    model = with_statistics(architecture(), torch.Generator().manual_seed(0)).eval()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    fold_batch_norms(model, x)
    assert model.norm.scale is not None
    torch.testing.assert_close(model(x), before)
