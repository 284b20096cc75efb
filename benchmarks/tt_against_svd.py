"""Tensor trains of three cores and more against two-core SVDs of as many parameters, layer by layer.

    python benchmarks/tt_against_svd.py [--bert DIR] [--resnet56-weights FILE] [--shares 0.5,0.25,0.1]

DIR is a folder of transformers with a text encoder. For each layer of 10,000 weights or more and each share of its
parameters: the relative error of the weight by the SVD, and by the best tensor train of three and of four cores, whose
modes the search chooses. Convolutions are compared as matrices [O, I kh kw]. As controls, the same matrices with rows
and columns in a random order, which an SVD does not see and a tensor train does, and matrices of normally distributed
weights, in which there is nothing to find. A line for each model and share: the geometric mean of the ratio of errors,
tensor train over SVD, below 1 where tensor trains are better; in how many layers they are; and the mean errors.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from compresskd.models.build import build
from compresskd.models.weights import load_weights
from compresskd.tt import Skipped, factorize

LEAST, MOST = 10_000, 2_000_000
CORES = (3, 4)
RESNET = {"depth": 56, "num_classes": 10, "input_shape": [3, 32, 32]}


def matrices_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights [M, N] of linear and convolution layers."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and LEAST <= layer.weight.numel() <= MOST:
            yield name, layer.weight.detach().flatten(1)


def error(weight: Tensor, count: int, **options: int | str) -> float | None:
    """Relative, of the weight, with at most `count` parameters; None where that is too few."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    made = factorize(layer, num_parameters=count, **options)  # pyright: ignore[reportArgumentType]
    if isinstance(made, Skipped):
        return None
    with torch.inference_mode():
        back = made.eval()(torch.eye(weight.shape[1])).T
    return float((back - weight).norm() / weight.norm())


def shuffled(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Rows and columns in another order."""
    rows, columns = (torch.randperm(size, generator=generator) for size in weight.shape)
    return weight[rows][:, columns]


def line(title: str, weights: Sequence[Tensor], share: float) -> None:
    """Compare all matrices at one share and print what came out."""
    ratios, of_svd, of_train = [], [], []
    for weight in weights:
        count = int(share * weight.numel())
        svd = error(weight, count, method="svd")
        trains = [error(weight, count, num_cores=cores) for cores in CORES]
        found = [train for train in trains if train is not None]
        if svd is None or not found:
            continue
        ratios.append(min(found) / svd)
        of_svd.append(svd)
        of_train.append(min(found))
    if not ratios:
        print(f"{title:<34} {share:>5}  no layer at this size")
        return
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    better = sum(ratio < 1 for ratio in ratios)
    svd, train = (sum(values) / len(values) for values in (of_svd, of_train))
    told = f"{mean:>6.3f}  {better:>3} of {len(ratios):<3}  {svd:>6.3f}  {train:>6.3f}"
    print(f"{title:<34} {share:>5}  {told}", flush=True)


def models(options: argparse.Namespace) -> Iterator[tuple[str, nn.Module]]:
    """Those that were named."""
    if options.bert is not None:
        from transformers import AutoModel

        yield options.bert.name, AutoModel.from_pretrained(options.bert)
    if options.resnet56_weights is not None:
        model = build(
            "compresskd.models.resnet.ResNet",
            {"depth": 56, "num_classes": 10, "input_shape": [3, 32, 32]},
            seed=0,
        )
        load_weights(model, options.resnet56_weights)
        yield "ResNet-56", model


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bert", type=Path)
    parser.add_argument("--resnet56-weights", type=Path)
    parser.add_argument("--shares", default="0.5,0.25,0.1")
    options = parser.parse_args()
    shares = [float(share) for share in options.shares.split(",")]
    print(f"{'matrices':<34} {'share':>5}  {'ratio':>6}  {'better':>10}  {'SVD':>6}  {'train':>6}")
    for name, model in models(options):
        generator = torch.Generator().manual_seed(0)
        weights = [weight for _, weight in matrices_of(model)]
        cases = {
            name: weights,
            f"{name}, shuffled": [shuffled(weight, generator) for weight in weights],
            f"{name}, normal": [torch.randn(weight.shape, generator=generator) for weight in weights],
        }
        for title, some in cases.items():
            for share in shares:
                line(title, some, share)


if __name__ == "__main__":
    main()
