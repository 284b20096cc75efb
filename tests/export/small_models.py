"""The architectures of conf/model in their smallest sizes, factorized and quantized as a file would hold them."""

import platform
from pathlib import Path

import pytest
import torch
import yaml
from named_models import NAMES
from torch import nn

from compresskd import artifact, tt
from compresskd.export import Source
from compresskd.layers import surgery
from compresskd.models.build import build
from compresskd.quant.activation import calibrate
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import prepare

_FLAGS = Path("/proc/cpuinfo")
_OVERFLOWS = (
    platform.machine() in ("x86_64", "AMD64") and _FLAGS.exists() and "vnni" not in _FLAGS.read_text()
)
needs_vnni = pytest.mark.skipif(
    _OVERFLOWS,
    reason="this processor has no VNNI: sums of integer products overflow in onnxruntime (docs/limits.md)",
)
CONF = Path(__file__).parents[2] / "conf" / "model"
_SHAPES = {
    "tt_mlp": [1, 8, 8],
    "tt_lenet_300_100": [1, 28, 28],
    "lenet_300_100": [1, 28, 28],
    "lenet5": [1, 28, 28],
}
_SMALLEST = {"ResNet": {"depth": 8}, "ResNetX4": {"depth": 8}, "WideResNet": {"depth": 10, "width": 1}}
_SMALLEST["VisionTransformer"] = {"depth": 1, "width": 48}


def _read(name):
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    bases = [base for base in config.pop("defaults", []) if base != "_self_"]
    return {key: value for base in bases for key, value in _read(base).items()} | config


def _smallest(name):
    config = _read(name) | {"num_classes": 10, "input_shape": _SHAPES.get(name, [3, 16, 16])}
    return config | _SMALLEST.get(config["_target_"].rpartition(".")[2], {})


def one_of_each():
    """The first configuration of every architecture; what else conf/model has differs in depth and width alone."""
    chosen = {}
    for name in NAMES:
        chosen.setdefault(_read(name)["_target_"], name)
    return sorted(chosen.values())


def model_of(name):
    """The network in evaluation mode, with batch norms as after a training."""
    config = _smallest(name)
    model = build(config.pop("_target_"), config, seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
    return model.eval()


def factorize(model, rank=2):
    """Every layer that gets smaller by it becomes a tensor train, in place; how many."""

    def replacement(_, module):
        if not isinstance(module, nn.Linear | nn.Conv2d):
            return None
        layer = tt.factorize(module, rank=rank)
        return None if isinstance(layer, tt.Skipped) else layer

    return len(surgery.replace(model, replacement))


def source_of(model, spec=None, inputs=None):
    """The model as it comes from a file, quantized as `spec` says; `inputs` give the ranges of activations."""
    if spec is not None:
        prepare(model, spec)
    if inputs is not None:
        calibrate(model, [inputs])
    content = artifact.content_of(model)
    quantized = {k: v for k, v in content.tensors.items() if isinstance(v, QuantizedTensor)}
    shape = tuple(content.architecture["kwargs"]["input_shape"])
    return Source(Path("none"), artifact.build(content), quantized, shape, content)


def inputs_of(source, count=33):
    """Normal inputs that fit."""
    return torch.randn(count, *source.input_shape)
