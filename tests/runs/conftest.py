"""Tiny experiments built by hand, what they leave on disk, and the command line in other processes."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Program
from tiny_runs import default_stages, make_recipe, metrics, untimed_stage, untimed_teacher

from compresskd.data.synthetic import synthetic
from compresskd.engine.experiment import Experiment
from compresskd.engine.strategy import Strategy
from compresskd.engine.teacher import Teacher
from compresskd.kd.logits import CrossEntropy
from compresskd.kd.objective import Objective
from compresskd.listeners.console import Reporter
from compresskd.models.build import build
from compresskd.run import open_run
from compresskd.stages import Fit


@pytest.fixture(scope="session")
def make_data():
    def make(**options):
        defaults = {
            "num_train": 96, "num_test": 32, "separation": 0.3, "data_seed": 0, "num_classes": 4,
            "input_shape": (1, 8, 8), "validation_fraction": None, "validation_count": 32, "split_seed": 0,
            "augmentation": None, "augmentation_bank": None,
        }  # fmt: skip
        return synthetic(name="synthetic", **(defaults | options))

    return make


@pytest.fixture
def make_experiment(make_data):
    """An experiment whose teacher is made in ROOT/teacher: 2 steps an epoch, a checkpoint after each."""

    def make(root, stages=None, *, data=None, student=None, teacher=None, recipe=None, seed=0):
        data = make_data() if data is None else data
        mlp = {"target": "compresskd.models.mlp.MLP", "kwargs": {"hidden": [16, 16]}}
        recipe = make_recipe(**(recipe or {}))
        common = {"num_classes": 4, "input_shape": [1, 8, 8]}

        def model(described, seed=seed):
            return build(described["target"], {**described["kwargs"], **common}, seed=seed)

        learn = Strategy("train", {"train": Fit(Objective({"cross_entropy": CrossEntropy()}), epochs=1)})
        wide = teacher or {"target": "compresskd.models.mlp.MLP", "kwargs": {"hidden": [24, 24]}}
        make_teacher = functools.partial(model, wide, seed=7)
        trains = Experiment(data, make_teacher, learn, recipe, 7, torch.device("cpu"), measure_latency=False)
        return Experiment(
            data,
            functools.partial(model, student or mlp),
            Strategy("test", stages or default_stages()),
            recipe,
            seed,
            torch.device("cpu"),
            teacher=Teacher(make_teacher, train=trains.run, directory=Path(root) / "teacher", key="k"),
            measure_latency=False,
        )

    return make


@pytest.fixture
def execute():
    """Run an experiment in ROOT/run, or go on with it; the record."""

    def execute(experiment, root):
        run = open_run(Path(root) / "run")
        try:
            return experiment.run(run, Reporter())
        finally:
            run.close()

    return execute


@pytest.fixture(scope="session")
def outcome():
    """What must not depend on how often a run was interrupted: a dict that compares equal."""

    def outcome(directory):
        record = json.loads((directory / "record.json").read_text())
        with np.load(directory / "predictions.npz") as arrays:
            predictions = {name: array.tolist() for name, array in arrays.items()}
        files = {
            str(path.relative_to(directory)): path.read_bytes()
            for folder in ("checkpoints", "model")
            for path in sorted((directory / folder).rglob("*"))
            if path.is_file()
        }
        return {
            "status": record["status"],
            "metrics": metrics(directory),
            "predictions": predictions,
            "models": files,
            "model": record["model"],
            "stages": [untimed_stage(stage) for stage in record["stages"]],
            "teacher": untimed_teacher(record["teacher"]),
            "final": record["final"],
            "left behind": sorted(p.name for p in directory.iterdir() if p.name.startswith(".")),
        }

    return outcome


@pytest.fixture
def program(tmp_path):
    """Start the command line in `tmp_path`; what still runs when the test ends is ended."""
    started = []

    def start(*arguments):
        started.append(Program(arguments, tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.kill()
