"""What the tests of runs share besides fixtures: a tiny recipe and strategy, and records without times."""

import functools
import json

import torch

from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.stages import Compression, Factorize, Fit
from compresskd.training import Recipe
from compresskd.training.schedules import one_cycle

TIMES = {"seconds", "samples_per_second"}
EVERY_STEP = 1e-9  # checkpoint_seconds


def make_recipe(**options):
    defaults = {
        "epochs": 2,
        "batch_size": 32,
        "optimizer": functools.partial(torch.optim.AdamW, lr=0.01),
        "scheduler": one_cycle,
        "checkpoint_seconds": EVERY_STEP,
    }
    return Recipe(**(defaults | options))


def default_stages(finetune_epochs=1):
    objective = Objective({"cross_entropy": CrossEntropy(0.3), "soft_targets": SoftTargets(0.7)})
    return {
        "distill": Fit(objective, epochs=2),
        "factorize": Factorize(Compression(rank=4)),
        "finetune": Fit(objective, epochs=finetune_epochs),
    }


def metrics(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def untimed_stage(stage):
    dropped = {"seconds", "train_seconds", "latency_ms", "latency_ms_beside", "teacher_outputs"}
    kept = {k: v for k, v in stage.items() if k not in dropped}
    counts = {
        k: {n: v[n] for n in ("num_computed", "num_served")}
        for k, v in stage.get("teacher_outputs", {}).items()
    }
    return {**kept, "counts": counts}


def untimed_teacher(teacher):
    dropped = {"source", "latency_ms", "directory"}  # who comes back to a teacher finds it made
    return None if teacher is None else {k: v for k, v in teacher.items() if k not in dropped}
