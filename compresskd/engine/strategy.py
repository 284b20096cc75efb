"""A strategy is named stages run in order; after each one the student is evaluated, measured, recorded and saved."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from compresskd import artifact, measure
from compresskd.data.base import Data, Split
from compresskd.distributed import active, alone
from compresskd.engine.events import Listener
from compresskd.engine.memory import give_back
from compresskd.measure import macs
from compresskd.measure.coverage import coverage
from compresskd.options import OptionError, within
from compresskd.quant.prepare import frozen
from compresskd.run import Record, Run, fingerprints
from compresskd.run.ownership import CHECKPOINTS, PREDICTIONS
from compresskd.run.predictions import SCORES, read_predictions, write_predictions
from compresskd.tasks import CLASSES, Inputs
from compresskd.tasks.batch import shortened
from compresskd.training import Recipe, Scores, evaluate
from compresskd.training.evaluation import evaluation_mode
from compresskd.training.saved import read_training, write_training
from compresskd.training.tt_plans import plans_used
from compresskd.tt.execution.policy import source_of

_NUM_TRIED = 3
TRAINING = f"{CHECKPOINTS}/training.ckpt"
# sizes that are given as ratios of the teacher's too
_COMPARED = ("num_parameters", "folder_bytes", "file_bytes", "macs")


class NotFiniteError(RuntimeError):
    """A model answers NaN or inf on finite inputs."""


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
        reference: makes the student anew as it was before any stage: nobody keeps it in memory meanwhile.
        trust: packages besides compresskd that stored models may be read back from; what a stage of this run makes
            is added.
        measure_latency: whether models are timed.
        scores_test: whether models are scored on the test split too.
        stage: name of the running stage.
        started: clock reading at which that stage would have begun had it never been interrupted.
    """

    data: Data
    run: Run
    recipe: Recipe
    seed: int
    device: torch.device
    reporter: Listener
    reference: Callable[[], nn.Module]
    trust: set[str] = field(default_factory=set)
    measure_latency: bool = True
    scores_test: bool = True
    stage: str = ""
    started: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> Record:
        """The run's record."""
        if self.run.record is None:
            raise RuntimeError("the run has not been started")
        return self.run.record

    @property
    def example(self) -> Inputs:
        """The typical sample of the validation split, the same in all runs on the data."""
        return self.data.validation.example

    @property
    def stage_seed(self) -> int:
        """The seed of the running stage: it differs between stages and does not depend on which others run."""
        return zlib.crc32(f"{self.seed}/{self.stage}".encode())

    def latency(self, models: Mapping[str, Callable[[], nn.Module]]) -> dict[str, dict[str, float]]:
        """Forward times by model and batch, in milliseconds; nothing where the run does not measure them.

        Batches larger than those of an evaluation are left out: their outputs may not fit.
        """
        if not self.measure_latency:
            return {}
        largest = self.recipe.evaluation_batch_size
        sizes = [size for size in measure.BATCH_SIZES if size <= largest]
        return measure.latency(
            {name: make() for name, make in models.items()}, self.example, batch_sizes=sizes
        )

    def begin(self, stage: str) -> int:
        """Begin or resume a stage, and return the number of its epochs that are done.

        Elapsed time continues from the checkpoint; torch's generator starts from the stage's seed.
        """
        self.stage, self.started, self.details = stage, time.perf_counter(), {}
        torch.manual_seed(self.stage_seed)
        saved = active().first(self._progress)
        if saved is None:
            self.forget_training()  # of a stage whose record a killed process had just written
            return 0
        seconds, wall_seconds, num_epochs = saved
        self.started -= seconds
        self.run.recall_seconds(wall_seconds)
        return num_epochs

    def save_training(self, state: Mapping[str, Any]) -> None:
        """Write the training state of the running stage; it replaces the last one atomically."""
        if not active().leads:
            return
        content = {
            "stage": self.stage,
            "seconds": time.perf_counter() - self.started,
            "wall_seconds": self.run.wall_seconds,
            "state": dict(state),
        }
        write_training(self.run.place(TRAINING), content)

    def training_state(self) -> dict[str, Any] | None:
        """What `save_training` last wrote for the running stage, or None where it starts afresh."""
        return active().first(lambda: (self._saved() or {}).get("state"))

    def _progress(self) -> tuple[float, float, int] | None:
        """Seconds of work on the stage and on the run, and the number of epochs, that are saved."""
        saved = self._saved()
        if saved is None:
            return None
        return saved["seconds"], saved["wall_seconds"], len(saved["state"].get("history", ()))

    def _saved(self) -> dict[str, Any] | None:
        saved = read_training(self.run.directory / TRAINING)
        return saved if saved is not None and saved["stage"] == self.stage else None

    def forget_training(self) -> None:
        """Remove the training state of a stage that has finished."""
        if active().leads:
            self.run.place(TRAINING).unlink(missing_ok=True)


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
class Checked(Protocol):
    """A stage that can tell, before anything is trained, that it would fail."""

    def check(self, state: State, example: Inputs) -> State:
        """Raise ValueError where the stage cannot work on models of this structure.

        Args:
            state: models as built, of no particular values, as the stages before leave them.
            example: [2, ...] inputs of the shape of the data.

        Returns:
            What the next stage will find; nothing in `state` is changed.
        """
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
    written: Mapping[str, str] = field(init=False, repr=False)  # each stage -> the name of what it comes from

    def __post_init__(self) -> None:
        if not self.stages:
            raise OptionError("stages", {}, "at least one stage")
        flat: dict[str, Stage] = {}
        written: dict[str, str] = {}
        for name, stage in self.stages.items():
            with within(f"stages.{name}"):
                made = stage.expand(name) if isinstance(stage, Expandable) else {name: stage}
                toward = getattr(stage, "toward", None)
                if toward is not None and toward not in flat:
                    names = ", ".join(flat) or "there is none, write null"
                    raise OptionError("toward", toward, f"one of the stages before it ({names})")
            flat |= made
            written |= dict.fromkeys(made, name)
        object.__setattr__(self, "stages", flat)
        object.__setattr__(self, "written", written)

    @property
    def needs_teacher(self) -> bool:
        """Whether any stage needs a teacher."""
        return any(stage.needs_teacher for stage in self.stages.values())

    @property
    def num_epochs(self) -> int:
        """Epochs of all stages together: of what a stage says that it trains, or of its own `epochs`."""
        trained = (getattr(stage, "training", stage) for stage in self.stages.values())
        return sum(getattr(each, "epochs", 0) for each in trained)

    @property
    def needs_student(self) -> bool:
        """Whether the student is looked at as it is built: not where the first stage makes it of the teacher."""
        return not getattr(next(iter(self.stages.values())), "makes_student", False)

    @property
    def wants_fresh_student(self) -> bool:
        """Whether the first stage draws weights anew, between which a teacher's norms and biases mean nothing."""
        return getattr(next(iter(self.stages.values())), "wants_fresh_student", False)

    def run(self, state: State, context: Context) -> State:
        """Run every stage that the record does not show as finished, and return the last state.

        What flows on, and what is scored, is the student as read back from its file: a run that was interrupted
        cannot differ from one that was not, nor the recorded figures from the model that is kept. The student of
        before is given up first: the two are never in memory together.

        Several processes call it together. They share what trains and what is scored; the rest is done by the first,
        and the others read back what it has made.
        """
        for number, (name, stage) in enumerate(self.stages.items()):
            entry, teacher = context.record.stage(name), state.teacher
            if entry is not None:
                state, _ = _restore(entry, teacher, context)
                context.reporter.note(f"{name}: finished before, taken from {entry['checkpoint']}")
                continue
            num_epochs = context.begin(name)
            finished = {s["name"] for s in context.record.stages}
            context.run.rewind_metrics(name, num_epochs, finished)
            context.reporter.stage(name, number, len(self.stages))
            state = _carried_out(name, stage, state, context)
            seconds = time.perf_counter() - context.started
            stored = _stored(name, state, context, new_teacher=state.teacher is not teacher)
            teacher = state.teacher
            del state
            give_back()
            state, content = _restore(stored, teacher, context)
            entry = _assess(name, stage, state, content, context, seconds, stored) | stored
            del content
            give_back()
            context.record.stages.append(entry)
            context.record.final = name
            context.run.save()
            context.forget_training()
            context.reporter.stage_finished(entry)
        context.forget_training()  # where a kill came between the last stage's record and this
        return state


def _carried_out(name: str, stage: Stage, state: State, context: Context) -> State:
    """What a stage makes of the state; in a process that only waits for the first one, the state as it was."""
    group = active()
    training = getattr(stage, "training", None)
    is_shared = training is not None and training.epochs > 0
    if group.world > 1 and not is_shared:
        context.reporter.note(f"{name}: runs on one process: it gains nothing from {group.world}")
    if not is_shared and not group.leads:
        return state
    with nullcontext() if is_shared else alone():
        return stage(state, context)


def _stored(name: str, state: State, context: Context, *, new_teacher: bool) -> dict[str, Any]:
    """As `_store` by the first process; what the others go on from."""
    stored = active().first(lambda: _store(name, state, context, new_teacher=new_teacher))
    context.trust |= {*stored["packages"]}
    return stored


def _store(name: str, state: State, context: Context, *, new_teacher: bool) -> dict[str, Any]:
    """Write the models that flow on; the part of the stage's entry by which `_restore` finds them."""
    run, checkpoint = context.run, f"{CHECKPOINTS}/{name}"
    stored: dict[str, Any] = {
        "checkpoint": checkpoint,
        "packages": artifact.packages(state.student),
        "frozen": frozen(state.student),
    }
    artifact.save(state.student, run.place(checkpoint))
    stored["files"] = fingerprints(run.directory, checkpoint)
    if state.teacher is not None and new_teacher:
        checkpoint = f"{checkpoint}.teacher"
        stored["teacher_checkpoint"] = checkpoint
        stored["packages"] = sorted({*stored["packages"], *artifact.packages(state.teacher)})
        artifact.save(state.teacher, run.place(checkpoint))
        stored["files"] |= fingerprints(run.directory, checkpoint)
    return stored


def _restore(
    entry: Mapping[str, Any], teacher: nn.Module | None, context: Context
) -> tuple[State, artifact.Content]:
    """Read back what `_store` wrote, from the packages that this process trusts, whatever the record names.

    Returns also what the student's file says; its floats are the student's own.
    """
    trust = sorted(context.trust)

    def load(checkpoint: str) -> tuple[nn.Module, artifact.Content]:
        return artifact.load_with_content(
            context.run.directory / checkpoint, device=context.device, trust=trust
        )

    student, content = load(entry["checkpoint"])
    if "frozen" in entry:  # a model file does not say it
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name not in entry["frozen"])
    if "teacher_checkpoint" in entry:
        teacher = load(entry["teacher_checkpoint"])[0].requires_grad_(False)
    give_back()  # the dense layers that the architecture had before its factors took their places
    return State(student, teacher), content


def earlier(name: str, context: Context) -> nn.Module:
    """The model of a stage that has finished, as its file holds it, not to be trained.

    Raises:
        ValueError: no stage of this name has finished.
    """
    entry = context.record.stage(name)
    if entry is None:
        raise ValueError(f"toward: no stage {name!r} has finished before {context.stage}")
    return _restore(entry, None, context)[0].student.requires_grad_(False)


def _assess(
    name: str,
    stage: Stage,
    state: State,
    content: artifact.Content,
    context: Context,
    seconds: float,
    stored: Mapping[str, Any],
) -> dict[str, Any]:
    """Score and measure the student; the record's entry for the stage."""
    scored = metrics_of(name, state.student, context)
    return active().first(lambda: _measured(name, stage, state, scored, content, context, seconds, stored))


def _measured(
    name: str,
    stage: Stage,
    state: State,
    scored: tuple[dict[str, float], Scores | None],
    content: artifact.Content,
    context: Context,
    seconds: float,
    stored: Mapping[str, Any],
) -> dict[str, Any]:
    student, (metrics, test) = state.student, scored
    checkpoint = context.run.directory / stored["checkpoint"]
    content = replace(content, about=artifact.about_of(context.data))
    products = macs.count(student, context.example)
    size = {
        "num_parameters": measure.num_parameters(student),
        "folder_bytes": artifact.folder_bytes(checkpoint),
        **artifact.compact_sizes(content, trust=stored["packages"]),
        "macs": products.number,
    }
    times = context.latency(
        {
            "student": lambda: student,
            "dense_student": context.reference,
            **({} if (dense := state.teacher) is None else {"teacher": lambda: dense}),
        }
    )
    teacher = context.record.teacher
    entry = {
        "name": name,
        "kind": type(stage).__name__,
        "status": "finished",
        "seconds": seconds,
        "metrics": metrics,
        "size": size,
        "macs_unknown": products.unknown,
        "latency_ms": times.pop("student", None),
        "latency_ms_beside": times,
        "layers": {},
        "skipped": {},
        "fingerprint": artifact.fingerprint(student),
        **context.details,
    }
    entry["coverage"] = coverage(student, content.tensors, entry["skipped"])
    if entry["layers"]:
        left = {name: each["reason"] for name, each in entry["coverage"].items() if each.get("is_matrix")}
        entry["skipped"] = {**left, **entry["skipped"]}
    plans = plans_used(student, context.data, context.recipe, trained=bool(entry.get("epochs")))
    if plans:
        entry["plans"] = {"source": source_of(training=True), "layers": plans}
    predictions = {} if test is None else store_predictions(context, name, test)
    if teacher is not None:
        of_teacher = teacher["size"]
        entry["compression"] = {
            k: of_teacher[k] / max(1, size[k])
            for k in _COMPARED
            if of_teacher.get(k) is not None and size[k] is not None
        }
        if "teacher" in predictions:
            both = (torch.from_numpy(predictions[key].astype(np.int64)) for key in (name, "teacher"))
            agreement = context.data.task.agreement(*both)
            if agreement is not None:
                metrics["teacher_agreement"] = agreement
    return entry


def score(student: nn.Module, split: Split, context: Context) -> Scores:
    """Evaluate a model on one split, in float32 as it is used afterwards, whatever precision it was trained at."""
    size = context.recipe.evaluation_batch_size
    return evaluate(student, split, context.data.task, batch_size=size, note=context.reporter.note)


def metrics_of(name: str, model: nn.Module, context: Context) -> tuple[dict[str, float], Scores | None]:
    """Every metric and the loss on validation and test for the record, and all scores on test; no test where the run
    leaves it alone.

    Raises:
        NotFiniteError: the model answers NaN or inf: its predictions mean nothing, and no figure is written.
    """
    metrics: dict[str, float] = {}
    test = None
    for split in (context.data.validation, context.data.test)[: 1 + context.scores_test]:
        scores = score(model, split, context)
        if not math.isfinite(scores.loss):
            raise NotFiniteError(f"{name}: the model's loss on the {split.name} split is {scores.loss}")
        metrics |= {f"{split.name}_{metric}": value for metric, value in scores.values.items()}
        test = scores if split is context.data.test else None
    return metrics, test


def few_samples(model: nn.Module, context: Context) -> Inputs:
    """3 training samples, unaugmented, to try new layers of this model on; texts are `shortened`."""
    inputs = next(iter(context.data.train.batches(_NUM_TRIED, epoch=None))).inputs
    with evaluation_mode(model):
        return shortened(model, inputs)


def store_predictions(context: Context, name: str, scores: Scores) -> dict[str, np.ndarray]:
    """Add what was predicted of the test set to predictions.npz; returns all arrays in it.

    Of a task of which no class is predicted, `scores/NAME` holds a score of each sample, higher is better.
    """
    path = context.run.place(PREDICTIONS)
    arrays: dict[str, np.ndarray] = read_predictions(path) if path.exists() else {}
    task = context.data.task
    if task.keeps_targets:
        targets = scores.targets.half() if task.targets_of_teacher else scores.targets
        arrays["targets"] = _narrow(targets.numpy())
    if task.keeps_targets and task.keeps_predictions:
        arrays[name] = _narrow(scores.predictions.numpy())
    if not (task.rows_are_samples and task.asks == CLASSES):
        arrays[f"{SCORES}{name}"] = scores.of_samples.numpy()
    write_predictions(path, arrays)
    return arrays


def _narrow(classes: np.ndarray) -> np.ndarray:
    """Whole numbers in the narrowest unsigned type that holds them all; others as they are."""
    if classes.dtype.kind == "f":
        return classes
    narrow = classes.astype(np.min_scalar_type(int(classes.max(initial=0))))
    if not np.array_equal(narrow, classes):
        raise ValueError(f"classes: expected numbers of 0 or more, got {int(classes.min())}")
    return narrow
