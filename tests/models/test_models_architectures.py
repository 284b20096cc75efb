"""Every YAML of conf/model: it builds, learns, copies, compiles, exports, and has its published size."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from named_models import NAMES
from torch import nn

from compresskd.models.build import build, spec_of

CONF = Path(__file__).parents[2] / "conf" / "model"
SMALLEST_OF_ITS_KIND = ["mlp", "lenet5", "resnet20", "resnet8x4", "wrn_16_1", "vit_tiny"]
CIFAR10, CIFAR100, MNIST = (10, [3, 32, 32]), (100, [3, 32, 32]), (10, [1, 28, 28])

PUBLISHED = [
    ("lenet_300_100", MNIST, 266_610),
    ("lenet5", MNIST, 431_080),
    ("resnet20", CIFAR10, 269_722),
    ("resnet32", CIFAR10, 464_154),
    ("resnet44", CIFAR10, 658_586),
    ("resnet56", CIFAR10, 853_018),
    ("resnet110", CIFAR10, 1_727_962),
    ("resnet8x4", CIFAR100, 1_233_540),
    ("resnet32x4", CIFAR100, 7_433_860),
    ("wrn_16_2", CIFAR100, 703_284),
    ("wrn_40_1", CIFAR100, 569_780),
    ("wrn_40_2", CIFAR100, 2_255_156),
]


def _read(name):
    """Read a YAML and, before it, the ones of the same folder that its `defaults` name."""
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    bases = [base for base in config.pop("defaults", []) if base != "_self_"]
    return {key: value for base in bases for key, value in _read(base).items()} | config


def _build(name, data, *, seed=0, **options):
    """Build what the YAML says, with the two interpolations replaced by what the data would give."""
    config = _read(name)
    target = config.pop("_target_")
    for key, value in zip(("num_classes", "input_shape"), data, strict=True):
        assert config[key] == f"${{data.{key}}}"
        config[key] = value
    return build(target, config | options, seed=seed)


def _randomise_batch_norms(model):
    """Give batch norms statistics and affine values of a trained network, so that leaving one out shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)


@pytest.mark.parametrize(("name", "data", "num_parameters"), PUBLISHED)
def test_parameter_count_is_the_published_one(name, data, num_parameters):
    with torch.device("meta"):
        model = _build(name, data)
    assert sum(p.numel() for p in model.parameters()) == num_parameters


TENSOR_TRAIN_SHAPES = {"tt_mlp": (1, 8, 8), "tt_lenet_300_100": (1, 28, 28)}


@pytest.mark.slow
@pytest.mark.parametrize("data", [CIFAR100, MNIST])
@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_builds_and_says_how(name, data):
    if name.startswith("tt_"):
        data = (10, TENSOR_TRAIN_SHAPES[name])  # their modes are written for one size of data
    with torch.device("meta"):
        model = _build(name, data)
        logits = model.eval()(torch.empty(2, *data[1]))
    assert logits.shape == (2, data[0])
    spec = spec_of(model)
    with torch.device("meta"):
        again = build(spec["target"], spec["kwargs"], seed=0)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


@pytest.mark.parametrize("name", SMALLEST_OF_ITS_KIND)
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = _build(name, (10, [3, 16, 16])).train()
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", SMALLEST_OF_ITS_KIND)
def test_copies_state_and_memory_format_do_not_change_the_outputs(name):
    torch.manual_seed(0)
    model = _build(name, (10, [3, 16, 16])).eval()
    _randomise_batch_norms(model)
    x_BCHW = torch.randn(3, 3, 16, 16)
    expected = model(x_BCHW)

    torch.testing.assert_close(copy.deepcopy(model)(x_BCHW), expected, rtol=0, atol=0)

    other = _build(name, (10, [3, 16, 16]), seed=1).eval()
    assert not torch.allclose(other(x_BCHW), expected)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x_BCHW), expected, rtol=0, atol=0)

    other.to(memory_format=torch.channels_last)
    outputs = other(x_BCHW.to(memory_format=torch.channels_last))
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST_OF_ITS_KIND)
def test_export_runs_at_another_batch_size(name):
    torch.manual_seed(0)
    options = {"depth": 2} if name == "vit_tiny" else {}
    model = _build(name, (10, [3, 16, 16]), **options).eval()
    _randomise_batch_norms(model)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    for batch_size in (1, 5):
        x_BCHW = torch.randn(batch_size, 3, 16, 16)
        torch.testing.assert_close(program.module()(x_BCHW), model(x_BCHW), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST_OF_ITS_KIND)
def test_compiles_as_one_graph_with_equal_outputs(name):
    torch.manual_seed(0)
    options = {"depth": 2} if name == "vit_tiny" else {}
    model = _build(name, (10, [3, 16, 16]), **options)
    expected = copy.deepcopy(model)(x_BCHW := torch.randn(2, 3, 16, 16))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_BCHW), expected, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("name", [n for n in NAMES if "MLP" not in _read(n)["_target_"]])
def test_a_convolutional_model_refuses_vectors(name):
    with pytest.raises(ValueError, match=r"needs images, .* got \[64\]; choose `mlp` for vectors"):
        _build(name, (10, [64]))


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "wrn_16_1"])
@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ((10, [3, 3, 8]), {}, r"at least 4x4 pixels, got 3x8 \(input_shape \[3, 3, 8\]\); choose mlp"),
        ((None, [3, 8, 8]), {}, "num_classes: got null, expected a whole number"),
        (CIFAR10, {"depth": 21}, "depth: got 21, expected 6n"),
        (CIFAR10, {"depth": 2}, "depth: got 2, expected 6n"),
        (CIFAR10, {"depth": "20"}, "depth: got '20', expected a whole number"),
    ],
)
def test_residual_networks_name_arguments_that_cannot_be(name, data, options, said):
    with pytest.raises(ValueError, match=said):
        _build(name, data, **options)
