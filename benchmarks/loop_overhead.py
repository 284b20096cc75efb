"""How much the training loop adds to a bare PyTorch loop: python benchmarks/loop_overhead.py [--quick] [--data DIR].

Both train the same model from the same weights on the same samples for the same epochs, with the same fused
optimizer, and score validation after each epoch. The bare loop takes its batches from tensors in memory and does
nothing else: no history, no running loss, no best epoch. Of images it runs twice: in the layout that PyTorch starts
with, which is what people write, and channels-last as `fit` trains convolutions, which tells the loop's own cost from
the gain of the layout. Of texts (with --data: --minilm FOLDER on SST-2, a GPT-2 of 4 layers of 128 on
tinyshakespeare; see loop_texts.py) transformers' Trainer runs besides, which needs accelerate, for this benchmark
alone. They take turns in one process, who goes first alternates; printed are medians over the turns, and the median
of the ratios within the turns, once of the clock on the wall and once of the processor time, which other programs on
the machine disturb less.
"""

import argparse
import copy
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import loop_texts
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
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2, for the text classifier")
    parser.add_argument("--only", default="", help="names of cases, by comma")
    parser.add_argument("--quick", action="store_true", help="fewer samples and turns")
    parser.add_argument("--turns", type=int, help="of either loop, after one that warms up")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    turns = options.turns or (3 if options.quick else 7)
    size = 1 if options.quick else 4
    cases = [
        Case("LeNet-5", "mnist", LeNet5, (1, 28, 28), 2560 * size, epochs=2, allowed=1.3),
        Case("ResNet-20", "cifar10", resnet20, (3, 32, 32), 640 * size, epochs=1, allowed=1.05),
    ]
    chosen = {name for name in options.only.split(",") if name}
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
        if not chosen or case.name in chosen:
            data = load(case, options.data).to(device)
            model = case.build(num_classes=10, input_shape=case.input_shape).to(device)
            seconds = compare(model, loops_of(case, data, device), device, turns)
            tell(case.name, seconds, case.epochs * case.steps, dict.fromkeys(seconds, case.allowed))
    for name, make in texts_of(options.data, options.minilm, size).items():
        if not chosen or name in chosen:
            texts = make()
            seconds = compare(texts.model.to(device), texts.loops(device), device, turns)
            tell(name, seconds, texts.steps, {"bare": 1.05, "Trainer": 1.0})


def tell(name: str, seconds: dict[str, list[Seconds]], steps: int, allowed: Mapping[str, float]) -> None:
    """A row for each loop that is not ours."""
    ours = seconds.pop(OURS)
    for other, bare in seconds.items():
        wall = [statistics.median(s.wall for s in side) for side in (bare, ours)]
        print(
            f"{name:<10} {other:<14} {wall[0]:8.3f} {wall[1]:8.3f} {1000 * wall[0] / steps:10.2f} "
            f"{median_ratio(ours, bare, 'wall'):7.3f} {median_ratio(ours, bare, 'processor'):10.3f} "
            f"{allowed[other]:8.2f}",
            flush=True,
        )


def texts_of(folder: str | None, minilm: str | None, size: int) -> dict[str, Callable[[], loop_texts.Texts]]:
    """The cases of texts by name, where there are data for them."""
    if folder is None:
        return {}
    root, found = Path(folder).resolve(), {}
    shakespeare = [f"data.path={root / 'tinyshakespeare'}", "data.tokenizer=characters", "data.block_size=64"]
    if minilm is not None:
        sst2 = [f"data.path={root / 'sst2'}", "data.text_column=sentence", "data.max_length=64"]
        sst2 += [f"data.tokenizer={minilm}"]
        found["MiniLM"] = lambda: loop_texts.minilm(configured("text", sst2), minilm, 80 * size)
    found["GPT-2"] = lambda: loop_texts.gpt2(configured("text_blocks", shakespeare), 240 * size)
    return found


def resnet20(**options: Any) -> nn.Module:
    """ResNet-20 for CIFAR-10."""
    return ResNet(depth=20, **options)


def median_ratio(ours: list[Seconds], bare: list[Seconds], clock: str) -> float:
    """Of neighbours, so that what slows the machine for a while slows both."""
    return statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in zip(ours, bare, strict=True))


def loops_of(case: Case, data: Data, device: torch.device) -> dict[str, Callable[[nn.Module], None]]:
    """The bare loops and `fit` by name."""
    train, validation = in_memory(data.train), in_memory(data.validation)
    bare = {
        name: functools.partial(bare_loop, train, validation, case, layout)
        for name, layout in LAYOUTS.items()
    }
    return {**bare, OURS: functools.partial(our_loop, data, case, device)}


def compare(
    model: nn.Module, loops: Mapping[str, Callable[[nn.Module], None]], device: torch.device, turns: int
) -> dict[str, list[Seconds]]:
    """Seconds of each loop by name, turn by turn."""
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
