"""What quantization-aware training costs: python benchmarks/qat_overhead.py [--quick] [--data DIR] [--bits 4].

The same model is trained for the same epochs on the same samples, by `fit` as the command line runs it, once in
floating point and once with every weight rounded (learned step size, channel scales; cores of tensor trains with one
scale each). They take turns in one process, who goes first alternates; printed are medians over the turns and the
median of the ratios within the turns, of the clock on the wall and of the processor time.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from loop_overhead import Case, Seconds, cross_entropy, load, median_ratio, optimizer, resnet20
from torch import nn

from compresskd import layers, tt
from compresskd.compression.trial import factorize_model
from compresskd.data.base import Data
from compresskd.engine.environment import keep_freed_memory
from compresskd.models.lenet import LeNet5
from compresskd.models.mlp import MLP
from compresskd.quant.prepare import QuantSpec, prepare
from compresskd.quant.together import rounded_together
from compresskd.tasks import Batch
from compresskd.training import LossOutput, Recipe, fit
from compresskd.training.schedules import cosine

ALLOWED = 1.5


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with mnist/ and cifar10/; without it, noise")
    parser.add_argument("--quick", action="store_true", help="fewer samples and turns")
    parser.add_argument("--turns", type=int, help="of either, after one that warms up")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--models", nargs="+", help="whose names hold one of these; default: all")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does
    turns = options.turns or (5 if options.quick else 11)
    size = 1 if options.quick else 4
    print(f"torch {torch.__version__}, {options.threads} threads, {turns} turns, {options.bits} bits")
    print(
        f"{'model':<24} {'batch':>5} {'float s':>8} {'QAT s':>8} {'ratio':>7} {'processor':>10} {'allowed':>8}"
    )
    for batch_size in options.batch_size:
        for case in _cases(size, batch_size):
            if options.models and not any(wanted in case.name for wanted in options.models):
                continue
            data = load(case, options.data and str(options.data))
            plain, rounded = _compare(case, data, turns, options.bits)
            wall = [statistics.median(s.wall for s in side) for side in (plain, rounded)]
            print(
                f"{case.name:<24} {batch_size:5} {wall[0]:8.3f} {wall[1]:8.3f} "
                f"{median_ratio(rounded, plain, 'wall'):7.3f} {median_ratio(rounded, plain, 'processor'):10.3f} "
                f"{case.allowed:8.2f}",
                flush=True,
            )


def _cases(size: int, batch_size: int) -> list[Case]:
    digits, objects = (1, 28, 28), (3, 32, 32)

    def case(name: str, data: str, build: Callable[..., nn.Module], shape: tuple[int, ...], num: int) -> Case:
        return Case(name, data, build, shape, num * size, 1, ALLOWED, batch_size)

    return [
        case("LeNet-300-100", "mnist", _perceptron, digits, 5120),
        case("LeNet-300-100, TT rank 8", "mnist", _factorized(_perceptron), digits, 5120),
        case("LeNet-5", "mnist", LeNet5, digits, 2560),
        case("LeNet-5, TT rank 8", "mnist", _factorized(LeNet5), digits, 2560),
        case("ResNet-20", "cifar10", resnet20, objects, 640),
    ]


def _perceptron(**options: object) -> nn.Module:
    return MLP(hidden=[300, 100], activation="relu", **options)  # pyright: ignore[reportArgumentType]


def _factorized(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def built(*, input_shape: Sequence[int], **options: object) -> nn.Module:
        model = build(input_shape=input_shape, **options)
        plan = {name: partial(tt.factorize, rank=8) for layer in layers.find(model) for name in layer.members}
        factorize_model(model, plan, torch.rand(4, *input_shape))
        return model

    return built


def _compare(case: Case, data: Data, turns: int, bits: int) -> tuple[list[Seconds], list[Seconds]]:
    """Seconds of training in floating point and with rounded weights, turn by turn."""
    torch.manual_seed(0)
    model = case.build(num_classes=10, input_shape=case.input_shape)
    seconds: tuple[list[Seconds], list[Seconds]] = ([], [])
    for turn in range(turns + 1):
        for rounded in (False, True) if turn % 2 else (True, False):
            contender = copy.deepcopy(model)
            if rounded:
                prepare(contender, QuantSpec(bits=bits))
            recipe = Recipe(
                epochs=case.epochs, batch_size=case.batch_size, optimizer=optimizer, scheduler=cosine
            )
            wall, processor = time.perf_counter(), time.process_time()
            fit(contender, data, _loss, recipe, seed=0, device=torch.device("cpu"))
            taken = Seconds(time.perf_counter() - wall, time.process_time() - processor)
            if turn:  # the first one warms up
                seconds[rounded].append(taken)
    return seconds


def _loss(model: nn.Module, batch: Batch) -> LossOutput:
    """Every weight is rounded once a step, as the stage `quantize` does it."""
    with rounded_together(model):
        return cross_entropy(model, batch)


if __name__ == "__main__":
    main()
