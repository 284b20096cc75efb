"""What the proof by trial costs: python benchmarks/trial_cost.py [--data DIR] [--models mlp,resnet20] [--turns 7].

The factorize stage of `compresskd teacher=MODEL data=SET strategy=compress` runs as it does there, on the network as
it is built (the time depends on its shapes), with calibration (compress.whitening=input, the default) and without.
Printed are medians of the processor time: of the whole stage, of the proof in it (who reads the weights of others,
the dense twins, the trial of all new layers), and the median of their ratios within the turns. Cases take turns;
before each one the plans of products are forgotten, as in a process that has just begun.
"""

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from compresskd.compression import trial
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.schema import register
from compresskd.engine.experiment import Experiment
from compresskd.engine.strategy import Context, State
from compresskd.tt import plans
from compresskd.tt.execution import choice, product

DATA = {
    "mlp": "digits",
    "lenet_300_100": "mnist",
    "lenet5": "mnist",
    "resnet20": "cifar10",
    "vit_tiny": "cifar10",
}
PROOF = ("read_by_others", "carrying", "differing")
ALLOWED = 0.05


def main() -> None:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder with mnist/ and cifar10/; else noise of the same shapes"
    )
    parser.add_argument("--models", default=",".join(DATA), help="of conf/model")
    parser.add_argument("--turns", type=int, default=7, help="after one that warms up")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    register()
    cases = {
        (name, aware): experiment(name, aware, options.rank, options.data)
        for name in options.models.split(",")
        for aware in (True, False)
    }
    found: dict[tuple[str, bool], list[tuple[float, ...]]] = {case: [] for case in cases}
    for turn in range(options.turns + 1):
        for case in list(cases)[:: 1 if turn % 2 else -1]:
            seconds = timed(cases[case])
            if turn:  # the first one warms up
                found[case].append(seconds)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.turns} turns, ms of processor time"
    )
    print(
        f"{'model':<14} {'whitening':<11} {'stage':>8} {'read':>7} {'twins':>7} {'trial':>7} {'proof':>7} {'share':>7}"
    )
    for (name, aware), turns in found.items():
        stage, *parts = (1000 * statistics.median(column) for column in zip(*turns, strict=True))
        share = statistics.median(sum(rest) / whole for whole, *rest in turns)
        told = " ".join(f"{part:7.1f}" for part in (*parts, sum(parts)))
        print(f"{name:<14} {str(aware).lower():<11} {stage:8.1f} {told} {share:7.1%}")


def experiment(name: str, aware: bool, rank: int, folder: Path | None) -> Experiment:
    """As the command line builds it."""
    data = ["data=synthetic", "data.num_classes=10", "data.num_train=1200"]
    if DATA[name] == "digits":
        data = ["data=digits"]
    elif folder is not None:
        data = [f"data={DATA[name]}", f"data.path={folder.resolve() / DATA[name]}"]
    else:
        shape = {"mnist": [1, 28, 28], "cifar10": [3, 32, 32]}[DATA[name]]
        data.append(f"data.input_shape={shape}")
    typed = [
        f"teacher={name}",
        "strategy=compress",
        f"rank={rank}",
        f"compress.whitening={'input' if aware else 'none'}",
    ]
    (job,) = build_jobs(compose_jobs([*typed, *data]).jobs)
    return job


def timed(of: Experiment) -> tuple[float, ...]:
    """Processor time of the stage, and of each part of the proof in it."""
    assert of.teacher is not None
    teacher = of.teacher.build().eval().requires_grad_(False)
    stage = of.strategy.stages["factorize"]
    nothing: Any = None
    context = Context(of.data, nothing, of.recipe, of.seed, of.device, nothing, teacher, stage="factorize")
    for cache in (choice.choose, product._chain):
        cache.cache_clear()
    with proof_timed() as parts, plans(of.plan):
        start = time.process_time()
        stage(State(teacher, teacher), context)
        return (time.process_time() - start, *parts.values())


@contextlib.contextmanager
def proof_timed() -> Iterator[dict[str, float]]:
    """Seconds by the name of what the stage calls of the proof."""
    before = {name: getattr(trial, name) for name in PROOF}
    seconds: dict[str, float] = dict.fromkeys(PROOF, 0.0)

    def clocked(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[name] += time.process_time() - start

    for name, call in before.items():
        setattr(trial, name, functools.partial(clocked, name, call))
    try:
        yield seconds
    finally:
        for name, call in before.items():
            setattr(trial, name, call)


if __name__ == "__main__":
    main()
