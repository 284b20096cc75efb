"""A strategy is named stages run in order; after each one the student is evaluated, measured, recorded and saved."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from compresskd import artifact, measure
from compresskd.console import Reporter
from compresskd.data.base import Data, Split
from compresskd.run import Record, Run, atomic, read_checked, write_checked
from compresskd.training import Recipe, Scores, evaluate


@dataclass(frozen=True)
class State:
    """What flows through the stages."""

    student: nn.Module
    teacher: nn.Module | None = None


@dataclass
class Context:
    """What a stage may use besides the state.

    Attributes:
        data: the three splits, on `device`.
        run: the run directory, open.
        recipe: how to train, where a stage does not say otherwise.
        seed: the run's seed; stages derive theirs from it and their name.
        details: what the running stage wants recorded (ranks, skipped layers, the best epoch).
        reference: the student's architecture as it was before any stage (for latency).
    """

    data: Data
    run: Run
    recipe: Recipe
    seed: int
    device: torch.device
    reporter: Reporter
    reference: nn.Module
    stage: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> Record:
        """The run's record."""
        if self.run.record is None:
            raise RuntimeError("the run has not been started")
        return self.run.record

    @property
    def example(self) -> Tensor:
        """[1, ...] one normalised sample of the validation split."""
        return next(iter(self.data.validation.batches(1))).inputs

    def save_training(self, state: Mapping[str, Any]) -> None:
        """Write the training state of the running stage; it replaces the last one atomically."""
        buffer = io.BytesIO()
        torch.save({"stage": self.stage, "state": dict(state)}, buffer)
        write_checked(self._training_file, buffer.getvalue())

    def training_state(self) -> dict[str, Any] | None:
        """What `save_training` last wrote for the running stage, or None where it starts afresh."""
        if not self._training_file.exists():
            return None
        saved = torch.load(
            io.BytesIO(read_checked(self._training_file)), map_location="cpu", weights_only=True
        )
        return saved["state"] if saved["stage"] == self.stage else None

    def forget_training(self) -> None:
        """Remove the training state of a stage that has finished."""
        self._training_file.unlink(missing_ok=True)

    @property
    def _training_file(self) -> Path:
        return self.run.checkpoints / "training.ckpt"


@runtime_checkable
class Stage(Protocol):
    """One step of a strategy: a frozen dataclass that is called with what flows and returns what flows on."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the stage cannot run without a teacher."""
        ...

    def __call__(self, state: State, context: Context) -> State:
        """Do the step. Must be a pure function of state, data and seed."""
        ...


@runtime_checkable
class Expandable(Protocol):
    """What stands in a strategy for several stages, each recorded by itself."""

    def expand(self, name: str) -> Mapping[str, Stage]:
        """The stages, named after the one that they stand for."""
        ...


@dataclass(frozen=True)
class Strategy:
    """Named stages in order."""

    name: str
    stages: Mapping[str, Stage]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("strategy.stages is empty; a strategy needs at least one stage")
        flat: dict[str, Stage] = {}
        for name, stage in self.stages.items():
            flat |= stage.expand(name) if isinstance(stage, Expandable) else {name: stage}
        object.__setattr__(self, "stages", flat)

    @property
    def needs_teacher(self) -> bool:
        """Whether any stage needs a teacher."""
        return any(stage.needs_teacher for stage in self.stages.values())

    def run(self, state: State, context: Context) -> State:
        """Run every stage that the record does not show as finished, and return the last state."""
        for number, (name, stage) in enumerate(self.stages.items()):
            context.stage, context.details = name, {}
            entry = context.record.stage(name)
            if entry is not None:
                state = _restore(entry, state, context)
                context.reporter.note(f"{name}: finished before, taken from {entry['checkpoint']}")
                continue
            finished = {s["name"] for s in context.record.stages}
            resumed = context.training_state()
            context.run.rewind_metrics(name, len(resumed["history"]) if resumed else 0, finished)
            context.reporter.stage(name, number, len(self.stages))
            start = time.perf_counter()
            state = stage(state, context)
            entry = _assess(name, stage, state, context, time.perf_counter() - start)
            context.record.stages.append(entry)
            context.record.final = name
            context.run.save()
            context.forget_training()
            context.reporter.stage_finished(entry)
        return state


def _restore(entry: Mapping[str, Any], state: State, context: Context) -> State:
    directory = context.run.directory
    trust = _trusted(state.student, state.teacher)
    student = artifact.load(directory / entry["checkpoint"], device=context.device, trust=trust)
    if entry.get("teacher_checkpoint"):
        teacher = artifact.load(directory / entry["teacher_checkpoint"], device=context.device, trust=trust)
        return State(student, teacher)
    return replace(state, student=student)


def _trusted(*models: nn.Module | None) -> list[str]:
    """The user's own packages: what this very run was configured to build may be built again."""
    return [type(m).__module__.partition(".")[0] for m in models if m is not None]


def _assess(name: str, stage: Stage, state: State, context: Context, seconds: float) -> dict[str, Any]:
    """Score, measure and save the student; the record's entry for the stage."""
    student, data = state.student, context.data
    checkpoint = f"checkpoints/{name}"
    stored = artifact.save(student, context.run.directory / checkpoint)
    validation, test = (score(student, split, context) for split in (data.validation, data.test))
    size = {
        "num_parameters": measure.num_parameters(student),
        "stored_bytes": stored,
        "macs": measure.macs(student, context.example),
    }
    models = {"student": student, "dense_student": context.reference}
    if state.teacher is not None:
        models["teacher"] = state.teacher
    times = measure.latency(models, context.example)
    metrics = {
        "validation_accuracy": validation.accuracy,
        "validation_loss": validation.loss,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
    }
    teacher = context.record.teacher
    entry = {
        "name": name,
        "kind": type(stage).__name__,
        "status": "finished",
        "seconds": seconds,
        "metrics": metrics,
        "size": size,
        "latency_ms": times.pop("student"),
        "latency_ms_beside": times,
        "layers": {},
        "skipped": {},
        **context.details,
        "checkpoint": checkpoint,
    }
    predictions = store_predictions(context, name, test)
    if teacher is not None:
        entry["compression"] = {k: teacher["size"][k] / max(1, v) for k, v in size.items()}
        if "teacher" in predictions:
            agree = predictions["teacher"] == predictions[name]
            metrics["teacher_agreement"] = float(agree.mean())
    return entry


def score(student: nn.Module, split: Split, context: Context) -> Scores:
    """Evaluate a model on one split as the run's recipe says."""
    recipe = context.recipe
    return evaluate(
        student,
        split,
        batch_size=recipe.evaluation_batch_size,
        precision=recipe.precision,
        device=context.device,
    )


def store_predictions(context: Context, name: str, scores: Scores) -> dict[str, np.ndarray]:
    """Add the predicted classes of the test set to predictions.npz; returns all arrays in it."""
    path = context.run.directory / "predictions.npz"
    arrays: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path) as stored:
            arrays = dict(stored.items())
    dtype = np.uint8 if context.data.num_classes <= 256 else np.uint16
    arrays["targets"] = context.data.test.targets.cpu().numpy().astype(dtype)
    arrays[name] = scores.predictions.cpu().numpy().astype(dtype)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return arrays
