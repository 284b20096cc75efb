"""How much the training loop adds to a bare PyTorch loop: python benchmarks/loop_overhead.py [--quick] [--data DIR].

Both train the same model from the same weights on the same samples for the same epochs, with the same fused
optimizer, and score validation after each epoch. The bare loop takes its batches from normalised float tensors in
memory and does nothing else: no history, no running loss, no best epoch. It runs twice: in the layout that PyTorch
starts with, which is what people write, and channels-last as `fit` trains convolutions, which tells the loop's own
cost from the gain of the layout. They take turns in one process, who goes first alternates; printed are medians over
the turns, and the median of the ratios within the turns, once of the clock on the wall and once of the processor
time, which other programs on the machine disturb less.
"""

import argparse
import copy
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from compresskd.data.base import Data, Split
from compresskd.models.lenet import LeNet5
from compresskd.models.resnet import ResNet
from compresskd.tasks import Batch
from compresskd.training import LossOutput, Recipe, fit
from compresskd.training.schedules import cosine

CONF = Path(__file__).resolve().parents[1] / "conf"
NUM_VALIDATION = 512
OURS = "fit"
LAYOUTS = {"as it starts": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One row of the table; `allowed` is the ratio that is still good."""

    name: str
    data: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    num_train: int
    epochs: int
    allowed: float
    batch_size: int = 128

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return math.ceil(self.num_train / self.batch_size)


@dataclass(frozen=True)
class Seconds:
    """What one training took."""

    wall: float
    processor: float


def main() -> None:
    """Run both cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", help="folder with mnist/ and cifar10/; without it, noise of the same shapes"
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples and turns")
    parser.add_argument("--turns", type=int, help="of either loop, after one that warms up")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    turns = options.turns or (3 if options.quick else 7)
    size = 1 if options.quick else 4
    cases = [
        Case("LeNet-5", "mnist", LeNet5, (1, 28, 28), 2560 * size, epochs=2, allowed=1.3),
        Case("ResNet-20", "cifar10", resnet20, (3, 32, 32), 640 * size, epochs=1, allowed=1.05),
    ]
    device = torch.device(options.device)
    source = options.data or "synthetic"
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {turns} turns, data: {source}"
    )
    print(
        f"{'model':<10} {'bare loop':<14} {'bare s':>8} {'fit s':>8} {'ms a step':>10} {'ratio':>7} "
        f"{'processor':>10} {'allowed':>8}"
    )
    for case in cases:
        data = load(case, options.data).to(device)
        seconds = compare(case, data, device, turns)
        ours = seconds.pop(OURS)
        for name, bare in seconds.items():
            wall = [statistics.median(s.wall for s in side) for side in (bare, ours)]
            step = 1000 * wall[0] / (case.epochs * case.steps)
            print(
                f"{case.name:<10} {name:<14} {wall[0]:8.3f} {wall[1]:8.3f} {step:10.2f} "
                f"{median_ratio(ours, bare, 'wall'):7.3f} {median_ratio(ours, bare, 'processor'):10.3f} "
                f"{case.allowed:8.2f}",
                flush=True,
            )


def resnet20(**options: Any) -> nn.Module:
    """ResNet-20 for CIFAR-10."""
    return ResNet(depth=20, **options)


def median_ratio(ours: list[Seconds], bare: list[Seconds], clock: str) -> float:
    """Of neighbours, so that what slows the machine for a while slows both."""
    return statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in zip(ours, bare, strict=True))


def compare(case: Case, data: Data, device: torch.device, turns: int) -> dict[str, list[Seconds]]:
    """Seconds of the bare loops and of `fit` by name, turn by turn."""
    torch.manual_seed(0)
    model = case.build(num_classes=10, input_shape=case.input_shape).to(device)
    train, validation = in_memory(data.train), in_memory(data.validation)
    loops = {
        **{
            name: functools.partial(bare_loop, train, validation, case, layout)
            for name, layout in LAYOUTS.items()
        },
        OURS: functools.partial(our_loop, data, case, device),
    }
    seconds: dict[str, list[Seconds]] = {name: [] for name in loops}
    for turn in range(turns + 1):
        for name in list(loops)[:: 1 if turn % 2 else -1]:
            contender = copy.deepcopy(model)
            wall, processor = time.perf_counter(), time.process_time()
            loops[name](contender)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken = Seconds(time.perf_counter() - wall, time.process_time() - processor)
            if turn:  # the first one warms up
                seconds[name].append(taken)
    return seconds


def optimizer(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The same for both."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)


def bare_loop(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    case: Case,
    layout: torch.memory_format,
    model: nn.Module,
) -> None:
    """The loop that everybody writes first."""
    model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    inputs, targets = train[0].contiguous(memory_format=layout), train[1]
    descent = optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, case.epochs)
    for _ in range(case.epochs):
        model.train()
        for rows in torch.randperm(len(inputs), device=inputs.device).split(case.batch_size):
            loss = F.cross_entropy(model(inputs[rows]), targets[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            batches = zip(validation[0].split(512), validation[1].split(512), strict=True)
            int(sum((model(x).argmax(1) == y).sum() for x, y in batches))


def our_loop(data: Data, case: Case, device: torch.device, model: nn.Module) -> None:
    """`fit` with progress asked for, as the command line runs it."""
    recipe = Recipe(epochs=case.epochs, batch_size=case.batch_size, optimizer=optimizer, scheduler=cosine)
    told: list[Any] = []
    fit(model, data, cross_entropy, recipe, seed=0, device=device, on_step=told.append, on_epoch=told.append)


def cross_entropy(model: nn.Module, batch: Batch) -> LossOutput:
    """The loss of both, as `fit` takes it."""
    logits = model(batch.inputs)
    loss = F.cross_entropy(logits, batch.targets)
    return LossOutput(loss, {"cross_entropy": loss.detach()}, logits)


def in_memory(split: Split) -> tuple[Tensor, Tensor]:
    """All inputs, normalised, and all targets."""
    batches = list(split.batches(512))
    return torch.cat([batch.inputs for batch in batches]), torch.cat([batch.targets for batch in batches])


def load(case: Case, folder: str | None) -> Data:
    """The first samples of the real set, without augmentation, or noise of its shape."""
    name, overrides = (
        "synthetic",
        [
            "data.num_classes=10",
            f"data.input_shape={list(case.input_shape)}",
            f"data.num_train={case.num_train + NUM_VALIDATION}",
            "data.validation_fraction=null",
            f"data.validation_count={NUM_VALIDATION}",
        ],
    )
    if folder is not None:
        name, overrides = case.data, [f"data.path={Path(folder).resolve() / case.data}"]
    data = configured(name, overrides)
    return replace(
        data, train=first(data.train, case.num_train), validation=first(data.validation, NUM_VALIDATION)
    )


def configured(name: str, overrides: list[str]) -> Data:
    """The data set of conf/data/NAME.yaml."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(config_name=f"data/{name}", overrides=overrides)
    return instantiate(config.data, _convert_="all")


def first(split: Split, count: int) -> Split:
    """The first samples of a split, as they are."""
    return replace(split, rows=split.rows[:count], targets=split.targets[:count], augmentation=None)


if __name__ == "__main__":
    main()
