"""What truncation alone costs, without retraining, at half the parameters: four ways to spend them.

    python benchmarks/truncation_quality.py --data DIR [--resnet56-weights FILE] [--budget 0.5] [--epochs 3]

DIR holds mnist/ and cifar10/ in the layout of Hugging Face datasets. Each row is an ordinary run of
`strategy=compress` on the same teacher:

    budget, by inputs      compress.budget=0.5: ranks shared among layers by output error on calibration samples
    budget, two-sided      the same with compress.whitening=two_sided: by what that error does to the loss
    one rank, weights      compress.rank=R compress.whitening=none: TT-SVD of every layer at one cap
    SVD, one rank          the same with compress.method=svd

R is the least rank at which the model takes at least the budget, so the plain ways never have fewer parameters.
LeNet-5 (MNIST) is trained by the runner; ResNet-56 (CIFAR-10) comes with its weights. Nothing is chosen on the test
set: every row is a rule.
"""

import argparse
import copy
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from compresskd import measure
from compresskd.compression.compression import NothingCompressed, factorize_model
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.schema import register
from compresskd.data.base import Data
from compresskd.engine.experiment import Experiment
from compresskd.engine.strategy import few_samples
from compresskd.listeners.console import Reporter
from compresskd.run import Record, open_run
from compresskd.stages import Compression

MAX_RANK = 512
ROWS = {
    "budget, by inputs": ["compress.budget={budget}"],
    "budget, two-sided": ["compress.budget={budget}", "compress.whitening=two_sided"],
    "one rank, weights": ["rank={rank}", "compress.whitening=none"],
    "SVD, one rank": ["rank={rank}", "compress.whitening=none", "compress.method=svd"],
}


def main() -> None:
    """Print one table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    parser.add_argument("--resnet56-weights", type=Path, help="checkpoint; without it LeNet-5 alone")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the parameters that is kept")
    parser.add_argument("--epochs", type=int, default=3, help="of the LeNet-5")
    options = parser.parse_args()
    register()
    with tempfile.TemporaryDirectory() as folder:
        common = [f"outputs_dir={folder}", "device=cpu", "strategy=compress"]
        mnist = ["data=mnist", f"data.path={options.data / 'mnist'}", "teacher=lenet5", "student=lenet5"]
        table("LeNet-5, MNIST", [*common, *mnist, f"teacher_fit.epochs={options.epochs}"], options.budget)
        if options.resnet56_weights:
            cifar = ["data=cifar10", f"data.path={options.data / 'cifar10'}"]
            teacher = ["teacher=resnet56", f"teacher.weights={options.resnet56_weights}", "student=resnet56"]
            table("ResNet-56, CIFAR-10", [*common, *cifar, *teacher], options.budget)


def table(title: str, overrides: Sequence[str], budget: float) -> None:
    """Run every row and print what it lost."""
    print(f"\n{title}, {budget:g} of the parameters, no retraining")
    print(f"{'':<22}{'rank':>6}{'parameters':>12}{'share':>8}{'test %':>9}{'lost':>8}{'seconds':>9}")
    for name, row in ROWS.items():
        needs_rank = any("{rank}" in override for override in row)
        rank = _least_rank(overrides, row, budget) if needs_rank else None
        started = time.perf_counter()
        record = _run(_experiment([*overrides, *(part.format(budget=budget, rank=rank) for part in row)]))
        _print(name, rank, record, time.perf_counter() - started)


def _print(name: str, rank: int | None, record: Record, seconds: float) -> None:
    stage, teacher = record.stages[-1], record.teacher
    assert teacher is not None
    before, after = (100 * entry["metrics"]["test_accuracy"] for entry in (teacher, stage))
    number, whole = (entry["size"]["num_parameters"] for entry in (stage, teacher))
    size = f"{rank or '':>6}{number:>12,}{number / whole:>8.3f}"
    print(f"{name:<22}{size}{after:>9.2f}{before - after:>8.2f}{seconds:>9.1f}", flush=True)


def _least_rank(overrides: Sequence[str], row: Sequence[str], budget: float) -> int:
    """By bisection: the size of a model does not fall as the rank rises."""
    experiment = _experiment([*overrides, *(part.format(rank=1) for part in row)])
    stage: Any = next(iter(experiment.strategy.stages.values()))
    model = experiment.student()
    low, high = 0, MAX_RANK
    while high - low > 1:
        middle = (low + high) // 2
        enough = _share(model, dataclasses.replace(stage.compression, rank=middle), experiment.data) >= budget
        low, high = (low, middle) if enough else (middle, high)
    return high


def _share(dense: nn.Module, how: Compression, data: Data) -> float:
    """Of the parameters that stay; it does not depend on the values of the weights."""
    model = copy.deepcopy(dense)
    context: Any = SimpleNamespace(data=data)  # more of it only data-aware plans and max_drop look at
    try:
        factorize_model(model, how.plan(model, context), few_samples(model, context))
    except NothingCompressed:  # the rank is too large for every layer
        return 1.0
    return measure.num_parameters(model) / measure.num_parameters(dense)


def _experiment(overrides: Sequence[str]) -> Experiment:
    (experiment,) = build_jobs(compose_jobs(list(overrides)).jobs)
    return experiment


def _run(experiment: Experiment) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(Path(folder) / "run")
        try:
            return experiment.run(run, Reporter())
        finally:
            run.close()


if __name__ == "__main__":
    main()
