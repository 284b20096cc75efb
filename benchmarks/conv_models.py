"""Whole image models, compressed, against dense in torch and against the dense model in 8-bit integers in onnxruntime.

    python benchmarks/conv_models.py [--models resnet20,resnet56,mobilenetv3,vit_tiny] [--threads 1,2] [--batch 1,32]
        [--allocation error,ratio] [--constant] [--quick]

Models have random weights whose singular values decay: each weight is Gaussian, in random bases of outputs and inputs
that count as k^-0.35, which gives matrices spectra near k^-0.7, and BatchNorm has the statistics of random images.
They are compressed as `compress` does, to a half and a quarter of the weights that may be factorized: by the least
sum of errors ('error', the default of a run) or each layer to the same share ('ratio'). The integers are
onnxruntime's own: static quantization, of transformers the dynamic one, which is the faster there. The compressed
models run there as well, exported in float. All run in turn in one process, with one thread by the thread's own time.
Printed are medians in milliseconds, in torch those of the faster memory layout, and how many times as fast that is as
dense in torch / as the integers.
"""

import argparse
import copy
import functools
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from statistics import geometric_mean

import onnx_peers
import torch
from torch import Tensor, nn
from tt_cases import Run, medians

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from small_architectures import import_timm

import compresskd
from compresskd.export import onnx
from compresskd.models.resnet import ResNet
from compresskd.tt import constant_weights

SHARES = {"1/2": 0.5, "1/4": 0.25}
PEERS = ("dense", "int8")
RUNTIMES = ("", " ONNX")
DECAY = 0.35
MODELS: dict[str, tuple[int, Callable[[], nn.Module]]] = {  # side of an image, the dense model
    "resnet20": (32, lambda: ResNet(depth=20, num_classes=10, input_shape=(3, 32, 32))),
    "resnet56": (32, lambda: ResNet(depth=56, num_classes=10, input_shape=(3, 32, 32))),
    "mobilenetv3": (224, lambda: import_timm().create_model("mobilenetv3_large_100")),
    "vit_tiny": (224, lambda: import_timm().create_model("vit_tiny_patch16_224")),
}


def dense_model(name: str) -> nn.Module:
    """The model with decaying weights, in evaluation mode."""
    torch.manual_seed(0)
    side, build = MODELS[name]
    model = build()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
                new = torch.einsum(
                    "ap,pq...->aq...", _basis(len(layer.weight)), torch.randn_like(layer.weight)
                )
                new = torch.einsum("bq,aq...->ab...", _basis(layer.weight.shape[1]), new)
                layer.weight.copy_(new * (layer.weight.norm() / new.norm()))
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the statistics are those of all that is shown
        model.train()(torch.randn(8, 3, side, side))
    return model.eval()


def _basis(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0] * torch.arange(1, size + 1) ** -DECAY


def layouts(name: str, model: nn.Module, x: Tensor) -> dict[str, Run]:
    """The model in the default memory layout and, where it is made of convolutions, in channels-last."""
    if any(isinstance(layer, nn.LayerNorm) for layer in model.modules()):
        return {name: functools.partial(model, x)}
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = x.to(memory_format=torch.channels_last)
    return {name: functools.partial(model, x), f"{name} last": functools.partial(last, images)}


def contenders(
    model: nn.Module, small: Mapping[str, nn.Module], x: Tensor, folder: Path, exported: Mapping[str, str]
) -> dict[str, Run]:
    """All that take turns on these images."""
    runs = layouts("dense", model, x) | {"int8": functools.partial(onnx_peers.read(folder, "int8"), x)}
    for label, each in small.items():
        runs |= layouts(label, each, x)
    for label, file in exported.items():
        runs[f"{label} ONNX"] = functools.partial(onnx_peers.read(folder, file), x)
    return runs


def lines(
    name: str, model: nn.Module, small: Mapping[str, nn.Module], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Print the lines of one model; times by contender, in torch of the faster layout."""
    side, found = MODELS[name][0], []
    with tempfile.TemporaryDirectory() as path:
        folder, example = Path(path), torch.randn(2, 3, side, side)
        calibration = None if name.startswith("vit") else torch.randn(8, 3, side, side)
        onnx_peers.write(model, example, folder, calibration)
        exported = {label: f"small{k}" for k, label in enumerate(small)}
        for label, file in exported.items():
            onnx.write(small[label], {}, example, folder / f"{file}.onnx")
        for threads, batch in product(options.threads, options.batch):
            torch.set_num_threads(threads)
            x = torch.randn(batch, 3, side, side)
            with torch.inference_mode(), constant_weights() if options.constant else nullcontext():
                times = medians(contenders(model, small, x, folder, exported), options.rounds)
            found.append({key: min(time, times.get(f"{key} last", time)) for key, time in times.items()})
            for way in options.allocation:
                print(f"| {name} | {threads} | {batch} | {way} | {_cells(found[-1], way)} |", flush=True)
    return found


def _cells(times: Mapping[str, float], way: str) -> str:
    cells = [f"{1e3 * times[peer]:.2f}" for peer in PEERS]
    for key in (f"{way} {share}{where}" for where in RUNTIMES for share in SHARES):
        ratios = " / ".join(f"{times[peer] / times[key]:.2f}" for peer in PEERS)
        cells += [f"{1e3 * times[key]:.2f} ({ratios})"]
    return " | ".join(cells)


def main() -> None:
    """Print a table in Markdown, and the means."""
    options, found = _options(), []
    logging.getLogger("compresskd").setLevel(logging.ERROR)  # which layers stay dense
    columns = ["model", "threads", "batch", "allocation", *PEERS]
    columns += [f"{share}{',' if where else ''}{where}" for where in RUNTIMES for share in SHARES]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name in options.models:
        model = dense_model(name)
        example = torch.randn(2, 3, *2 * [MODELS[name][0]])
        small = {
            f"{way} {share}": compresskd.compress(
                model, example, budget=budget, budget_over="included", allocation=way
            )
            for way in options.allocation
            for share, budget in SHARES.items()
        }
        found += lines(name, model, small, options)
    for where, peer in product(RUNTIMES, PEERS):
        names = [f"{way} {share}{where}" for way in options.allocation for share in SHARES]
        ratios = [times[peer] / times[name] for times in found for name in names]
        mean, least = geometric_mean(ratios), min(ratios)
        print(f"\nin {where.strip() or 'torch'}, than {peer}: geometric mean {mean:.2f}, least {least:.2f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--allocation", default="error,ratio")
    parser.add_argument("--constant", action="store_true", help="within compresskd.tt.constant_weights")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 in a few rounds")
    options = parser.parse_args()
    for key, kind in (("models", str), ("threads", int), ("batch", int), ("allocation", str)):
        setattr(options, key, [kind(value) for value in getattr(options, key).split(",")])
    if options.quick:
        options.models = options.models[:1]
    options.rounds = 3 if options.quick else 5
    return options


if __name__ == "__main__":
    main()
