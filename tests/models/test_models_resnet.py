import io
import os
from pathlib import Path

import pytest
import torch

from compresskd.models.resnet import ResNet, SubsampleAndPad
from compresskd.models.resnet_x4 import ResNetX4
from compresskd.models.weights import load_weights
from compresskd.models.wide_resnet import WideResNet

CIFAR10 = {"num_classes": 10, "input_shape": [3, 32, 32]}
DATA = os.environ.get("COMPRESSKD_DATA")


def _parameters(model):
    return list(dict(model.named_parameters()))


def test_names_are_those_of_the_shared_checkpoints():
    names = _parameters(ResNet(depth=20, **CIFAR10))
    assert names[:6] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.bn1.bias",
    ]
    assert names[-2:] == ["linear.weight", "linear.bias"]
    assert not any("downsample" in name for name in names)
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}


def test_names_of_the_distillation_literature():
    names = _parameters(ResNetX4(depth=8, **CIFAR10))
    assert "layer1.0.downsample.0.weight" in names
    assert "layer1.0.downsample.1.weight" in names
    assert names[-2:] == ["fc.weight", "fc.bias"]
    names = _parameters(WideResNet(depth=16, width=2, **CIFAR10))
    shortcuts = [f"block{group}.layer.0.convShortcut.weight" for group in (1, 2, 3)]
    assert [name for name in names if "Shortcut" in name] == shortcuts
    assert names[-4:] == ["bn1.weight", "bn1.bias", "fc.weight", "fc.bias"]
    assert not any(
        "Shortcut" in n for n in _parameters(WideResNet(depth=16, width=1, **CIFAR10)) if "block1" in n
    )


def test_option_a_shortcut_equals_its_definition():
    x_BCHW = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    y_BCHW = SubsampleAndPad(3, 6, stride=2)(x_BCHW)
    expected = torch.zeros(2, 6, 3, 2)
    for row in range(3):
        for column in range(2):
            expected[:, 1:4, row, column] = x_BCHW[:, :, 2 * row, 2 * column]
    torch.testing.assert_close(y_BCHW, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("multiplier", "widths"), [(2, (32, 64, 128)), (0.5, (8, 16, 32)), (0.01, (1, 2, 4))]
)
def test_width_multiplier_scales_every_group(multiplier, widths):
    model = ResNet(depth=8, width_multiplier=multiplier, **CIFAR10).eval()
    assert (
        tuple(layer[0].conv1.out_channels for layer in (model.layer1, model.layer2, model.layer3)) == widths
    )
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("multiplier", [0, -1, float("nan"), float("inf"), "2", True])
def test_width_multiplier_that_cannot_be(multiplier):
    with pytest.raises(ValueError, match="width_multiplier: got"):
        ResNet(width_multiplier=multiplier, **CIFAR10)


def test_initial_activations_keep_their_scale_through_the_groups():
    torch.manual_seed(0)
    model = ResNet(depth=20, **CIFAR10).train()
    x_BCHW = torch.relu(model.bn1(model.conv1(torch.randn(16, 3, 32, 32))))
    for group in (model.layer1, model.layer2, model.layer3):
        x_BCHW = group(x_BCHW)
        assert 0.5 < x_BCHW.std() < 4


def test_dropout_of_wide_networks_acts_in_training_only():
    torch.manual_seed(0)
    model = WideResNet(depth=10, width=1, dropout=0.5, **CIFAR10)
    x_BCHW = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x_BCHW), model(x_BCHW))
    model.eval()
    torch.testing.assert_close(model(x_BCHW), model(x_BCHW), rtol=0, atol=0)
    with pytest.raises(ValueError, match="dropout: got 1, expected < 1"):
        WideResNet(dropout=1, **CIFAR10)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(DATA is None, reason="COMPRESSKD_DATA names no folder of public data sets")
@pytest.mark.parametrize(
    ("file", "depth", "accuracy"),
    [("cifar10_resnet20", 20, 0.81), ("cifar10_resnet56", 56, 0.83), ("cifar10jpg_resnet20_ft", 20, 0.867)],
)
def test_shared_weights_load_and_classify(file, depth, accuracy):
    model = ResNet(depth=depth, **CIFAR10)
    load_weights(model, Path(DATA) / "weights" / f"{file}.safetensors")
    inputs, targets = _cifar10_test(Path(DATA) / "cifar10", 500)
    with torch.inference_mode():
        predictions = model.eval()(inputs).argmax(dim=1)
    # 500 of the 10,000 images: three standard errors are 5 points
    assert (predictions == targets).double().mean().item() == pytest.approx(accuracy, abs=0.05)


@pytest.mark.real_data
@pytest.mark.skipif(DATA is None, reason="COMPRESSKD_DATA names no folder of public data sets")
def test_shared_weights_of_another_depth_are_refused():
    model = ResNet(depth=20, **CIFAR10)
    with pytest.raises(ValueError, match=r"216 unexpected \(layer1.3.bn1.*, and 213 more\)"):
        load_weights(model, Path(DATA) / "weights" / "cifar10_resnet56.safetensors")


def _cifar10_test(folder, count):
    """Return the first images of the test set, normalised as the weights expect, and their labels."""
    numpy, parquet = pytest.importorskip("numpy"), pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    columns = parquet.read_table(next(folder.glob("test-*.parquet"))).slice(0, count).to_pydict()
    decoded = [numpy.asarray(image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in columns["img"]]
    x_BHWC = torch.from_numpy(numpy.stack(decoded)).float() / 255
    normalised = (x_BHWC - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    return normalised.permute(0, 3, 1, 2), torch.tensor(columns["label"])
