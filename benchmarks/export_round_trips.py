"""Every architecture of conf/model, exported and read again: the largest difference of any output.

    python benchmarks/export_round_trips.py [--models resnet20,vit_tiny] [--samples 64] [--rank 4]

Each is exported dense and, where a layer gets smaller by it, in tensor-train format; in float, with weights of 8 and of
4 bits, and with weights and inputs of 8 bits. A cell is the largest absolute difference to the model as it is loaded,
over batches of 1 and 32 of random inputs, divided by its largest output. Where inputs are rounded, a value at the
border of two integers may fall to either side, which shows as a difference of one step.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import yaml
from named_models import NAMES
from torch import nn

from compresskd import artifact, tt
from compresskd.export import ExportFailed, Source, export
from compresskd.export.samples import Samples, random
from compresskd.layers import surgery
from compresskd.models.build import build
from compresskd.quant.activation import calibrate
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import QuantSpec, prepare

CONF = Path(__file__).parents[1] / "conf" / "model"
SHAPES = {
    "tt_mlp": [1, 8, 8],
    "tt_lenet_300_100": [1, 28, 28],
    "lenet_300_100": [1, 28, 28],
    "lenet5": [1, 28, 28],
}
PRECISIONS = {
    "float": None,
    "8 bits": QuantSpec(bits=8),
    "4 bits": QuantSpec(bits=4),
    "8 bits, inputs too": QuantSpec(bits=8, activation_bits=8),
}


def configured(name: str) -> nn.Module:
    """The architecture of conf/model/NAME.yaml for ten classes, with batch norms as after a training."""
    config = read(name) | {"num_classes": 10, "input_shape": SHAPES.get(name, [3, 32, 32])}
    model = build(config.pop("_target_"), config, seed=0)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
    return model.eval()


def read(name: str) -> dict:
    """The YAML, and before it those that its `defaults` name."""
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    bases = [base for base in config.pop("defaults", []) if base != "_self_"]
    return {key: value for base in bases for key, value in read(base).items()} | config


def factorize(model: nn.Module, rank: int) -> int:
    """Put every layer that gets smaller by it into tensor-train format, in place; how many."""

    def replacement(_: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Linear | nn.Conv2d):
            return None
        layer = tt.factorize(module, rank=rank)
        return None if isinstance(layer, tt.Skipped) else layer

    return len(surgery.replace(model, replacement))


def source_of(model: nn.Module, spec: QuantSpec | None, samples: Samples) -> Source:
    """The model as it is loaded from a file, quantized as `spec` says."""
    if spec is not None:
        prepare(model, spec)
        if spec.activation_bits:
            calibrate(model, [samples.inputs])
    content = artifact.content_of(model.eval())
    quantized = {k: v for k, v in content.tensors.items() if isinstance(v, QuantizedTensor)}
    shape = tuple(samples.inputs.shape[1:])
    return Source(Path("none"), artifact.build(content), quantized, shape, content)


def cell(source: Source, form: str, samples: Samples) -> str:
    """The largest difference in proportion, and predictions where not all are equal."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = export(source, form, Path(folder) / "model", samples, timed=False).agreement
        except ExportFailed as error:
            return f"FAILED: {error}"
    equal = "" if found.equal_predictions == 1 else f" ({100 * found.equal_predictions:.1f}% equal)"
    return f"{found.largest_difference / found.largest_output:.1e}{equal}"


def main() -> None:
    """Print one line for each architecture, its form and its precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(NAMES))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rank", type=int, default=4)
    options = parser.parse_args()
    print("| architecture | layers | weights | ONNX | pt2 | dense | seconds |\n|---|---|---|---|---|---|---|")
    for name in options.models.split(","):
        for layers in ("dense", "tensor train"):
            for precision, spec in PRECISIONS.items():
                model, start = configured(name), time.perf_counter()
                samples = random(SHAPES.get(name, [3, 32, 32]), options.samples)
                if layers == "tensor train" and not factorize(model, options.rank):
                    continue
                source = source_of(model, spec, samples)
                cells = [cell(source, form, samples) for form in ("onnx", "pt2", "dense")]
                seconds = f"{time.perf_counter() - start:.0f}"
                print("|", " | ".join([name, layers, precision, *cells, seconds]), "|", flush=True)


if __name__ == "__main__":
    main()
