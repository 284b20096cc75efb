"""What rounding costs each form of a layer: python benchmarks/rounding_forms.py [--model DIR] [--layers PATTERN].

A weight [M, N], whole and at a share of its numbers as interpolative factors and as two cores of a low-rank SVD, each
rounded in groups of 64: to the nearest, and with errors fed back (`quant.rounding=gptq`). Printed is the squared error
of the layer's outputs that rounding adds, as a multiple of that of the whole weight with errors fed back at equally
many bits; truncation does not count. Inputs are Gaussian, their covariance has eigenvalues near k^-1 in a random basis.
Weights are those of a model in a folder of transformers, or random ones whose singular values fall as k^-0.7.
"""

import argparse
import copy
import fnmatch
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compresskd import tt
from compresskd.compression.start_quantized import start_quantized
from compresskd.stages import Quantization

SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536))
WAYS = ("nearest", "gptq")


def main() -> None:
    """Print a line for each layer, form and number of bits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder of transformers")
    parser.add_argument("--layers", default="*", help="pattern of names")
    parser.add_argument("--shares", default="0.9,0.7")
    parser.add_argument("--bits", default="3,4")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'layer':<44}{'form':<22}{'bits':>5}{'nearest':>10}{'fed back':>10}")
    for name, weight in weights(options.model, options.layers):
        covariance = covariance_of(weight.shape[1])
        whole = of_dense(weight)
        forms: dict[str, nn.Module] = {"whole": whole}
        for share in map(float, options.shares.split(",")):
            for method in ("interpolative", "svd"):
                forms[f"{method} at {share:g}"] = low_rank(whole, method, share, covariance)
        for bits in map(int, options.bits.split(",")):
            unit = added(whole, bits, "gptq", covariance)
            for form, layer in forms.items():
                found = (added(layer, bits, way, covariance) / unit for way in WAYS)
                print(
                    f"{name:<44}{form:<22}{bits:>5}" + "".join(f"{each:10.2f}" for each in found), flush=True
                )


def weights(folder: str | None, pattern: str) -> Iterator[tuple[str, Tensor]]:
    """Names and weights [M, N] of linear layers."""
    if folder is None:
        for rows, columns in SHAPES:
            u, v = (torch.linalg.qr(torch.randn(size, size)).Q for size in (rows, columns))
            least = min(rows, columns)
            values = torch.arange(1, least + 1) ** -0.7
            yield f"{rows}x{columns}, random", u[:, :least] * values @ v[:least]
        return
    from transformers import AutoModel

    for name, layer in AutoModel.from_pretrained(folder).named_modules():
        if isinstance(layer, nn.Linear) and fnmatch.fnmatch(name, pattern):
            yield name, layer.weight.detach().float()


def covariance_of(size: int) -> Tensor:
    """[N, N] of inputs with eigenvalues near 1/k."""
    basis = torch.linalg.qr(torch.randn(size, size)).Q
    return basis / torch.arange(1, size + 1) @ basis.T


def of_dense(weight: Tensor) -> nn.Linear:
    """The layer of a weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def low_rank(layer: nn.Linear, method: str, share: float, covariance: Tensor) -> nn.Module:
    """At a share of the numbers: r (M + N - r) of interpolative factors, r (M + N) of two cores."""
    rows, columns = layer.weight.shape
    side, wanted = rows + columns, share * rows * columns
    rank = wanted / side if method == "svd" else (side - (side**2 - 4 * wanted) ** 0.5) / 2
    found = tt.factorize(layer, rank=int(rank), method=method, input_covariance=covariance)
    if isinstance(found, tt.Skipped):
        raise SystemExit(f"{layer}: {found}")
    return found


@torch.no_grad()
def added(layer: nn.Module, bits: int, way: str, covariance: Tensor) -> float:
    """The squared error of outputs that rounding adds, errors fed back or not."""
    model = nn.Sequential(copy.deepcopy(layer))
    quantization = Quantization(
        bits=bits, rounding=way, granularity=64, core_granularity=64, core_start="nearest"
    )
    start_quantized(model, quantization, keep_integers=True, covariances={"0": covariance}, seed=0)
    error = dense(model[0]) - dense(layer)
    return float(((error @ covariance) * error).sum())


def dense(layer: nn.Module) -> Tensor:
    """[M, N]."""
    return layer.to_dense() if hasattr(layer, "to_dense") else layer.weight  # pyright: ignore


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
