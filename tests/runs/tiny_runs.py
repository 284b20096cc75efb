"""What the tests of runs share besides fixtures: a tiny recipe and strategy, and the program in another process."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

import compresskd
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


class Program:
    """One process of the command line, in a folder of the test's own."""

    def __init__(self, arguments, folder, **environment):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
        environment["PYTHONPATH"] = str(Path(compresskd.__file__).parents[1])
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "compresskd", *arguments],
                cwd=folder,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def running(self):
        return self.process.poll() is None

    @property
    def text(self):
        return self.output.read_text()

    def wait_for(self, condition, seconds=60.0):
        """Until `condition()` holds; whether it did while the program was still running."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.002)
        return False

    def send(self, number):
        self.process.send_signal(number)

    def kill(self):
        """SIGKILL; whether it still ran."""
        killed = self.running
        self.process.kill()
        self.process.wait()
        return killed

    def finish(self, seconds=120.0):
        """The exit code."""
        return self.process.wait(timeout=seconds)
