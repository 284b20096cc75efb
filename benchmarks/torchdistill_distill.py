"""How long a distillation takes, compresskd and torchdistill side by side.

    python benchmarks/torchdistill_distill.py --data DIR [--quick] [--teacher-weights FILE]

DIR holds mnist/ and cifar10/ in the layout of Hugging Face datasets. torchdistill==1.1.5 and torchvision must be
installed beside compresskd. Same teacher, same initial student, same images and split, same loss (checked before
anything is timed), batch size, SGD, schedule, epochs. Timed is training with validation after each epoch and the
keeping of checkpoints; loading the data before, and the scores on the test set after, are not.

    compresskd                     the stage `distill` of an ordinary run, configured as from the command line
    torchdistill, as configured    its repository's configuration for CIFAR: PIL images, transforms, a DataLoader
                                   with as many workers as are fastest here
    torchdistill, tuned            what its user could do better: see `Variant` in torchdistill_peers.py
    plain loop                     DataLoader with two workers, the teacher in every step

Neither peer keeps teacher outputs (torchdistill removed that before 1.1.5); compresskd does where a sample looks
the same in every epoch, so the more epochs, the more it gains there. The sides take turns in one process. Printed
are medians over the turns, and the median over turns of the ratio, by the clock and by the processor time of the
process and its workers (which other programs disturb less). Without --teacher-weights (a CIFAR ResNet of the
teacher's depth) teachers are trained for an epoch or two, which is enough for speed. compresskd does not decay
biases and norms, the others do.
"""

import argparse
import dataclasses
import functools
import logging
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torchdistill_peers as peers
from torch import nn
from torchdistill_cases import Case, cases, distillation, task_of, train_teacher

from compresskd import artifact
from compresskd.config.schema import register
from compresskd.engine.experiment import Experiment
from compresskd.engine.strategy import Context, Stage, State, Strategy
from compresskd.listeners.console import Reporter
from compresskd.run import open_run
from compresskd.training import evaluate

T = TypeVar("T")
OURS = "compresskd"


@dataclass(frozen=True)
class Cost:
    """Of one training. `processor_seconds` of this process and of its workers."""

    seconds: float
    processor_seconds: float


Side = Callable[[int], tuple[Cost, nn.Module]]  # seed -> what it cost, the trained student


@dataclass(frozen=True)
class Clocked:
    """A stage that notes what it cost."""

    stage: Stage
    costs: list[Cost] = field(default_factory=list)

    @property
    def needs_teacher(self) -> bool:
        """That of the stage."""
        return self.stage.needs_teacher

    def __call__(self, state: State, context: Context):
        """Run it."""
        cost, result = clocked(lambda: self.stage(state, context))
        self.costs.append(cost)
        return result


def clocked(run: Callable[[], T]) -> tuple[Cost, T]:
    """What `run` cost, and what it returned."""
    seconds, processor_seconds = time.perf_counter(), _processor_seconds()
    result = run()
    return Cost(time.perf_counter() - seconds, _processor_seconds() - processor_seconds), result


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Run the cases and print their tables."""
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in ("compresskd", "torchdistill"):
        logging.getLogger(name).setLevel(logging.WARNING)
    register()
    turns = options.turns or (2 if options.quick else 5)
    print(f"$ {_command()}")
    print(f"torch {torch.__version__}, torchdistill 1.1.5, {torch.get_num_threads()} threads, {turns} turns")
    for case in cases(options):
        with tempfile.TemporaryDirectory() as folder:
            compare(case, options, turns, Path(folder))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    add("--teacher-weights", type=Path, help="checkpoint of the CIFAR teacher")
    add("--teacher", type=int, default=20, choices=[20, 32, 44, 56, 110], help="depth of the CIFAR teacher")
    add("--student", type=int, default=8, help="depth of the CIFAR student, a ResNet too")
    add("--cases", nargs="+", choices=["mnist", "cifar", "cifar-augmented"], help="all, if left out")
    add("--workers", type=int, nargs="+", help="tried for torchdistill: 0 1 2 4, or 0 2 with --quick")
    add(
        "--quick",
        action="store_true",
        help="fewer images, epochs and turns: a minute or two on two idle cores",
    )
    add("--turns", type=int)
    add("--epochs", type=int)
    add("--num-train", type=int, help="training images of the CIFAR cases")
    add("--threads", type=int, help="of torch, in the training process")
    options = parser.parse_args()
    if options.epochs is not None and options.epochs < 2:
        parser.error("--epochs: expected 2 or more, so that there is an epoch to use kept teacher outputs in")
    options.workers = options.workers or ([0, 2] if options.quick else [0, 1, 2, 4])
    return options


def _command() -> str:
    """As typed, with no path of this machine."""
    words = ["python", "benchmarks/torchdistill_distill.py"]
    stand_ins = {"--data": "DIR", "--teacher-weights": "FILE"}
    for before, word in zip(["", *sys.argv[1:]], sys.argv[1:], strict=False):
        name, equals, _ = word.partition("=")
        hidden = f"{name}={stand_ins[name]}" if equals and name in stand_ins else word
        words.append(stand_ins.get(before, hidden))
    return shlex.join(words)


def compare(case: Case, options: argparse.Namespace, turns: int, folder: Path) -> None:
    """One case: every side in every turn, then the table."""
    weights = options.teacher_weights if case.data == "cifar10" else None
    experiment = distillation(
        case, options.data, folder, weights or train_teacher(case, options.data, folder)
    )
    task = task_of(experiment, case)
    tried, sides = _sides(experiment, task, options.workers, folder)
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    accuracies: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            cost, student = sides[name](turn)
            costs[name].append(cost)
            accuracies[name].append(100 * evaluate(student, experiment.data.test, batch_size=512).accuracy)
            _note(f"{case.key}, turn {turn + 1} of {turns}, {name}: {cost.seconds:.2f} s")
    print(
        f"\n{case.title}: {len(task.train):,} training and {len(task.validation):,} validation images, "
        f"{case.epochs} epochs; torchdistill should take at least {case.wanted} times as long"
    )
    _print(costs, accuracies)
    for label, seconds in tried.items():
        listed = ", ".join(f"{workers}: {value:.2f}" for workers, value in seconds.items())
        print(f"torchdistill, {label}, seconds of one epoch by number of workers: {listed}", flush=True)


def _print(costs: Mapping[str, list[Cost]], accuracies: Mapping[str, list[float]]) -> None:
    print(f"{'':<40}{'seconds (least - most)':>25}{'times':>7}{'processor s':>13}{'times':>7}{'test %':>15}")
    for name, own in costs.items():
        seconds = [cost.seconds for cost in own]
        ratio = statistics.median(c.seconds / o.seconds for c, o in zip(own, costs[OURS], strict=True))
        work = statistics.median(
            c.processor_seconds / o.processor_seconds for c, o in zip(own, costs[OURS], strict=True)
        )
        spread = statistics.stdev(accuracies[name]) if len(own) > 1 else 0.0
        print(
            f"{name:<40}{statistics.median(seconds):10.2f} ({min(seconds):5.2f} - {max(seconds):5.2f}){ratio:7.2f}"
            f"{statistics.median(cost.processor_seconds for cost in own):13.2f}{work:7.2f}"
            f"{statistics.mean(accuracies[name]):9.2f} ±{spread:4.2f}"
        )


def _sides(
    experiment: Experiment, task: peers.Task, workers: list[int], folder: Path
) -> tuple[dict[str, dict[int, float]], dict[str, Side]]:
    """Seconds of an epoch by number of workers, of both ways to use torchdistill; then all sides, warm."""
    sides: dict[str, Side] = {OURS: functools.partial(_ours, experiment, folder)}
    _note(f"{OURS}, to warm up: {sides[OURS](0)[0].seconds:.2f} s")
    seconds: dict[str, dict[int, float]] = {}
    for label, tuned in (("as configured", False), ("tuned", True)):
        data = peers.datasets(task, tuned=tuned)
        seconds[label] = _try_workers(task, data, workers, folder, tuned=tuned)
        best = peers.Variant(min(workers, key=lambda n, tried=seconds[label]: tried[n]), tuned)
        run = functools.partial(peers.torchdistill, task, data, best, folder=folder)
        sides[f"torchdistill, {label}, {best.workers} workers"] = functools.partial(_by_seed, run)
    run = functools.partial(peers.plain_loop, task, peers.datasets(task, tuned=False), folder=folder)
    sides["plain loop, 2 workers"] = functools.partial(_by_seed, run)
    return seconds, sides


def _try_workers(
    task: peers.Task, data: dict, workers: list[int], folder: Path, *, tuned: bool
) -> dict[int, float]:
    """Seconds of one epoch, start of the workers and validation included: the better of two."""
    once = dataclasses.replace(task, epochs=1)
    tried = {}
    for number in workers:
        variant = peers.Variant(number, tuned)
        run = functools.partial(peers.torchdistill, once, data, variant, 0, folder)
        tried[number] = min(clocked(run)[0].seconds for _ in range(2))
        _note(f"torchdistill, {'tuned, ' if tuned else ''}{number} workers: {tried[number]:.2f} s an epoch")
    return tried


def _by_seed(run: Callable[..., nn.Module], seed: int) -> tuple[Cost, nn.Module]:
    return clocked(functools.partial(run, seed=seed))


def _ours(experiment: Experiment, folder: Path, seed: int) -> tuple[Cost, nn.Module]:
    """An ordinary run into a directory of its own; the cost is that of its training stage."""
    ((name, stage),) = experiment.strategy.stages.items()
    clock = Clocked(stage)
    strategy = Strategy(experiment.strategy.name, {name: clock})
    run = open_run(folder / "run", unique=True)
    try:
        record = dataclasses.replace(experiment, seed=seed, strategy=strategy).run(run, Reporter())
    finally:
        run.close()
    return clock.costs[0], artifact.load(run.directory / record.stages[0]["checkpoint"])


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
