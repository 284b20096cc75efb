"""What it takes to factorize a whole model, by part: python benchmarks/convert_cost.py [NAME=FOLDER ...] [--rank 16].

Models: ResNet-56, and each folder of a Hugging Face model that is named (minilm=DIR smollm2=DIR), as it is built or
trained; every linear layer, convolution and embedding is factorized (`compress.method=tensor_train`), once by the
weight itself and, with --whitened, once in the metric of covariances of inputs. Seconds of the processor, each counted
once, for the innermost part that is running: the spectra by which modes are ranked, the roots of covariances, the
decompositions, least squares in the metric, the errors of what was found. `torch.linalg.svd` of the same matrices in
float32, by which a low-rank form would be found without any of this, stands beside.
"""

import argparse
import time
from pathlib import Path

import torch
from run_cost import REST, Clock
from torch import Tensor, nn

from compresskd import layers, tt
from compresskd.models.resnet import ResNet

PARTS = {
    "spectra": ("compresskd.tt.decompose.ranks:Spectra.tails",),
    "roots": ("compresskd.tt.decompose.metric:root", "compresskd.tt.decompose.whitening:root"),
    "decomposition": (
        "compresskd.tt.decompose.whitening:_kronecker",
        "compresskd.tt.decompose.search:tt_svd",
        "compresskd.tt.decompose.whitening:tt_svd",
    ),
    "least squares": ("compresskd.tt.decompose.whitening:_improved",),
    "errors": ("compresskd.tt.decompose.metric:Weighed.error", "compresskd.tt.decompose.metric:Metric.cost"),
}
_MOST = 2**22  # elements of a matrix of which the plain SVD is timed


def main() -> None:
    """Factorize every model and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="NAME=FOLDER")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--whitened", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = Clock(PARTS)
    clock.watch_parts()
    print(
        f"torch {torch.__version__}, {options.threads} threads, rank {options.rank}, seconds of the processor"
    )
    names = ["weights", "million", *PARTS, REST, "all", "SVD"]
    print("| model | metric | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    folders = dict(each.split("=", 1) for each in options.models)
    for name, folder in {"resnet56": None, **folders}.items():
        model = _resnet() if folder is None else _of_hub(Path(folder))
        for whitened in (False, True)[: 1 + options.whitened]:
            figures = _converted(model, options.rank, whitened, clock)
            metric = "inputs" if whitened else "weights"
            print(
                f"| {name} | {metric} | " + " | ".join(f"{each:.4g}" for each in figures) + " |", flush=True
            )


def _resnet() -> nn.Module:
    return ResNet(input_shape=[3, 32, 32], num_classes=10, depth=56)


def _of_hub(folder: Path) -> nn.Module:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


def _converted(model: nn.Module, rank: int, whitened: bool, clock: Clock) -> list[float]:
    found = [layer for layer in layers.find(model) if layer.obstacle is None]
    count, plain = 0, 0.0
    for layer in found:
        module = layers.plain(layer.module)
        weight = module.weight.detach().float().flatten(1)
        count += weight.numel()
        is_whitened = whitened and isinstance(module, nn.Linear)
        covariance = _covariance(weight.shape[1]) if is_whitened else None
        clock.skip()
        tt.factorize(layer.module, rank=rank, input_covariance=covariance)
        clock.finish()
        if weight.numel() <= _MOST:
            start = time.process_time()
            torch.linalg.svd(weight, full_matrices=False)
            plain += time.process_time() - start
    clock.skip()
    seconds = {part: processor for part, (processor, _) in clock.restart().items()}
    parts = [seconds[part] for part in (*PARTS, REST)]
    return [len(found), count / 1e6, *parts, sum(parts), plain]


def _covariance(size: int) -> Tensor:
    """Of full rank, its eigenvalues falling by a thousand."""
    generator = torch.Generator().manual_seed(size)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return (basis * torch.logspace(0, -3, size, dtype=torch.float64)) @ basis.T


if __name__ == "__main__":
    main()
