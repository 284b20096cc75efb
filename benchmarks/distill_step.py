"""Where a step of distillation with crop and flip goes: ResNet-20 to ResNet-8 on images of CIFAR-10's size, batch 128.

    python benchmarks/distill_step.py [--teacher 20] [--student 8] [--batches 12] [--turns 5]

Random images, one thread, its own time: the median of a batch by part, in channels-last as a run has it and in the
default layout as people start. The parts are those of a run (`TensorSplit.batches`, `evaluation_mode`); the meter is
left out. What no kind of prefetching changes is the arithmetic of teacher and student, so the last lines say how much
faster a step could get without all the rest, and without the teacher, whose outputs a bank of few augmented views
lets a run keep.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.data.augmentation import Compose, HorizontalFlip, RandomCrop
from compresskd.data.base import TensorSplit
from compresskd.data.normalize import Normalize
from compresskd.models.resnet import ResNet
from compresskd.training.evaluation import evaluation_mode

BATCH, TEMPERATURE = 128, 4.0
LAYOUTS = (torch.channels_last, torch.contiguous_format)


def split(num: int) -> TensorSplit:
    """Random images with crop and flip."""
    pixels = torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8)
    targets = torch.randint(0, 10, (num,))
    augmentation = Compose({"crop": RandomCrop(), "flip": HorizontalFlip()})
    normalize = Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), 255.0)
    return TensorSplit("train", pixels, torch.arange(num), targets, normalize, "", augmentation)


class Clock:
    """Seconds of this thread by the name of a part."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, run: Callable[[], Tensor]) -> Tensor:
        """What `run` returns, its time noted."""
        start = time.thread_time()
        result = run()
        self.seconds.setdefault(name, []).append(time.thread_time() - start)
        return result


def turn(
    data: TensorSplit,
    teacher: nn.Module,
    student: nn.Module,
    layout: torch.memory_format,
    clock: Clock,
    epoch: int,
) -> None:
    """One epoch, its parts timed."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    plain, augmentation = replace(data, augmentation=None).batches(BATCH, epoch=epoch), data.augmentation
    assert augmentation is not None
    for batch in data.batches(BATCH, epoch=epoch):
        clock("gather and normalize", lambda: next(plain).inputs)
        chosen, draws = data.pixels[batch.index], torch.rand(BATCH, augmentation.num_draws)
        clock("crop and flip", lambda images=chosen, draws=draws: augmentation(images, draws, 255.0))
        x = clock("memory layout", lambda images=batch.inputs: images.contiguous(memory_format=layout))
        with evaluation_mode(teacher), torch.no_grad():
            theirs = clock("teacher", lambda x=x: teacher(x))
        logits = clock("student, forward", lambda x=x: student(x))
        loss = clock("loss", lambda a=logits, b=theirs, y=batch.targets: distillation_loss(a, b, y))
        clock("student, backward", lambda loss=loss: loss.backward() or loss)
        clock("optimizer", lambda loss=loss: optimizer.step() or loss)
        optimizer.zero_grad()


def distillation_loss(logits: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
    """Hinton's."""
    soft = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, 1), F.softmax(theirs / TEMPERATURE, 1), reduction="batchmean"
    )
    return 0.1 * F.cross_entropy(logits, targets) + 0.9 * TEMPERATURE**2 * soft


def main() -> None:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("--teacher", 20), ("--student", 8), ("--batches", 6), ("--turns", 5)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, clocks = split(BATCH * options.batches), {layout: Clock() for layout in LAYOUTS}
    models = {
        layout: [
            ResNet(depth=depth, num_classes=10, input_shape=[3, 32, 32]).to(memory_format=layout)  # pyright: ignore
            for depth in (options.teacher, options.student)
        ]
        for layout in LAYOUTS
    }
    for layout in LAYOUTS:
        turn(data, *models[layout], layout, Clock(), 0)
    for epoch, layout in product(range(options.turns), LAYOUTS):
        turn(data, *models[layout], layout, clocks[layout], epoch)
    ours, other = (
        {name: 1e3 * median(values) for name, values in clock.seconds.items()} for clock in clocks.values()
    )
    whole = sum(ours.values())
    print(f"{'':<22}{'channels-last':>13}{'share':>8}{'default layout':>16}   milliseconds")
    for name, value in ours.items():
        print(f"{name:<22}{value:13.2f}{value / whole:8.1%}{other[name]:16.2f}")
    print(f"{'step':<22}{whole:13.2f}{1:8.0%}{sum(other.values()):16.2f}")
    arithmetic = sum(value for name, value in ours.items() if name.startswith(("teacher", "student")))
    print(f"without all but teacher and student {whole / arithmetic:.3f}x as fast")
    print(f"without the teacher {whole / (whole - ours['teacher']):.2f}x as fast")


if __name__ == "__main__":
    main()
