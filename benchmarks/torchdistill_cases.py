"""What torchdistill_distill.py compares: each case as an experiment of compresskd and as the peers' task."""

import dataclasses
import functools
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchdistill_peers as peers

from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.data.base import Data, Split
from compresskd.engine.experiment import Experiment
from compresskd.listeners.console import Reporter
from compresskd.models.weights import load_weights
from compresskd.run import open_run
from compresskd.stages import Fit
from compresskd.tasks import ModelOutputs


@dataclass(frozen=True)
class Case:
    """One table. `wanted`: how many times as long torchdistill should take, at least."""

    key: str
    data: str
    title: str
    teacher: tuple[str, ...]  # overrides, written for the role of a student
    student: tuple[str, ...]
    augmentation: str
    wanted: float
    num_train: int
    epochs: int
    teacher_epochs: int


def cases(options: Namespace) -> list[Case]:
    """Those asked for, in their full or quick size."""
    quick = options.quick
    cifar = functools.partial(
        Case,
        data="cifar10",
        teacher=(f"student=resnet{options.teacher}",),
        student=("student=resnet20", f"student.depth={options.student}"),
        num_train=options.num_train or (384 if quick else 2000),
        epochs=options.epochs or (8 if quick else 20),
        teacher_epochs=1,
    )
    pair = f"CIFAR-10, ResNet-{options.teacher} to ResNet-{options.student}"
    everything = [
        Case(
            key="mnist",
            data="mnist",
            title="MNIST, LeNet-5 to LeNet-300-100, no augmentation",
            teacher=("student=lenet5",),
            student=("student=lenet_300_100",),
            augmentation="none",
            wanted=1.5,
            num_train=4000 if quick else 20000,
            epochs=options.epochs or (4 if quick else 20),
            teacher_epochs=2,
        ),
        cifar(key="cifar", title=f"{pair}, no augmentation", augmentation="none", wanted=1.5),
        cifar(key="cifar-augmented", title=f"{pair}, crop and flip", augmentation="crop_flip", wanted=1.0),
    ]
    return [case for case in everything if not options.cases or case.key in options.cases]


def train_teacher(case: Case, data: Path, folder: Path) -> Path:
    """Weights of a teacher good enough for speed, from a short run of its own."""
    overrides = [*case.teacher, "strategy=train", f"epochs={case.teacher_epochs}"]
    run = open_run(folder / "teacher")
    try:
        _experiment(case, data, folder, overrides).run(run, Reporter())
    finally:
        run.close()
    return run.directory / "checkpoints" / "train" / "model.safetensors"


def distillation(case: Case, data: Path, folder: Path, weights: Path) -> Experiment:
    """compresskd's side."""
    teacher = [override.replace("student", "teacher", 1) for override in case.teacher]
    fractions = ",".join(str(epoch / case.epochs) for epoch in _milestones(case.epochs))
    own = ["strategy=distill", f"epochs={case.epochs}", f"scheduler.milestones=[{fractions}]"]
    return _experiment(case, data, folder, [*own, *teacher, *case.student, f"teacher.weights={weights}"])


def _milestones(epochs: int) -> tuple[int, ...]:
    """Where torchdistill's configuration for CIFAR puts them: at one half and three quarters."""
    return tuple(sorted({max(1, epochs // 2), max(1, 3 * epochs // 4)}))


def _experiment(case: Case, data: Path, folder: Path, overrides: list[str]) -> Experiment:
    """What the command line would run, with part of the images."""
    common = [
        f"data={case.data}",
        f"data.path={data / case.data}",
        f"data/augmentation={case.augmentation}",
        "optimizer=sgd",
        "scheduler=multistep",
        "train.batch_size=128",
        "device=cpu",
        f"outputs_dir={folder}",
    ]
    (experiment,) = build_jobs(compose_jobs([*common, *overrides]).jobs)
    return dataclasses.replace(experiment, data=_part(experiment.data, case.num_train))


def _part(data: Data, num_train: int) -> Data:
    """`num_train` training images, a quarter as many for validation, and at most half as many for the test."""
    return dataclasses.replace(
        data,
        train=_some(data.train, num_train),
        validation=_some(data.validation, num_train // 4),
        test=_some(data.test, max(1000, num_train // 2)),
    )


def _some(split: Split, number: int) -> Split:
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:number]
    return dataclasses.replace(split, rows=split.rows[chosen], targets=split.targets[chosen])


def task_of(experiment: Experiment, case: Case) -> peers.Task:
    """The peers' side, read off the experiment. Raises RuntimeError where a peer would minimise something else."""
    assert experiment.teacher is not None
    assert experiment.teacher.weights is not None
    teacher = experiment.teacher.build()
    load_weights(teacher, experiment.teacher.weights)
    config: Any = experiment.config
    sgd = {k: v for k, v in config["optimizer"].items() if k not in ("_target_", "_partial_", "fused")}
    task = peers.Task(
        teacher=teacher.eval().requires_grad_(False),
        student=experiment.student(),
        train=experiment.data.train,
        validation=experiment.data.validation,
        epochs=case.epochs,
        batch_size=config["train"]["batch_size"],
        alpha=config["kd"]["alpha"],
        temperature=config["kd"]["temperature"],
        optimizer=sgd,
        milestones=_milestones(case.epochs),
        augmented=case.augmentation != "none",
    )
    _check_losses(experiment, task)
    return task


def _check_losses(experiment: Experiment, task: peers.Task) -> None:
    classes = experiment.data.num_classes
    logits, teacher = torch.randn(2, 64, classes, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(64) % classes
    (stage,) = experiment.strategy.stages.values()
    assert isinstance(stage, Fit)
    total, _ = stage.objective(ModelOutputs(logits, {}), ModelOutputs(teacher, {}), targets)
    for name, value in peers.losses(task, logits, teacher, targets).items():
        if abs(value - float(total)) > 1e-5 * abs(value):
            raise RuntimeError(f"{name} minimises something else: its loss is {value}, ours {float(total)}")
