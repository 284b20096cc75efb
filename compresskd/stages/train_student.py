"""Train a student by an objective against any number of teachers: what every training stage shares."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.data.alternating import with_unlabelled
from compresskd.data.base import Data, Split
from compresskd.distributed import active, of_batch
from compresskd.engine.strategy import Context
from compresskd.kd.objective import BoundObjective, CapturedPair, Objective
from compresskd.options import OptionError
from compresskd.quant.together import rounded_together
from compresskd.stages.teacher_outputs import TeacherOutputs
from compresskd.tasks import Batch, ModelOutputs, Task
from compresskd.training import EpochRecord, LossOutput, Recipe, fit


@dataclass(frozen=True)
class Training:
    """What a stage that trains is going to ask of `train_student`, known before there is a trained model.

    Attributes:
        teacher: which ones, as in `compresskd.stages.Fit`.
        learning_rate: replaces `optimizer.lr`; None keeps it.
        learning_rate_field: where it is set, of the stage.
    """

    objective: Objective
    epochs: int
    teacher: str = "original"
    learning_rate: float | None = None
    learning_rate_field: str = "learning_rate"


@dataclass(frozen=True)
class Comparison:
    """One objective bound to the student and one teacher (None where only labels count)."""

    name: str
    bound: BoundObjective
    captured: CapturedPair
    outputs: Callable[[Batch], ModelOutputs] | None

    def __call__(self, rows: ModelOutputs, targets: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, from the rows of what the student said of a batch, and their targets."""
        teacher = None if self.outputs is None else self.captured.teacher(self.outputs(batch))
        student = self.captured.student(rows)
        return self.bound(student, teacher, targets, labelled=batch.labelled)


def train_student(
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    objective: Objective,
    context: Context,
    *,
    epochs: int,
    learning_rate: float | None = None,
    penalty: Callable[[], Tensor] | None = None,
    after_step: Callable[[int], None] | None = None,
    before_epoch: Callable[[int], None] | None = None,
    extra_modules: Sequence[nn.Module] = (),
) -> None:
    """Train `student` in place; the weights of the best validation epoch are kept.

    Args:
        teachers: by name; with several, the loss is the mean of the objective against each. Ignored where the
            objective compares with none.
        learning_rate: replaces `optimizer.lr`; None keeps it.
        penalty: a further loss on the student's own parameters, added to the total.
        after_step: called with the number of updates after each.
        before_epoch: called with the epoch, the student in training mode: the place to freeze modules.
        extra_modules: their state is saved in checkpoints along with the student's.

    The running stage's details get epochs, best_epoch, train_seconds and what storing teacher outputs saved.
    """
    seed = context.stage_seed
    torch.manual_seed(seed)
    named = dict(teachers) if objective.needs_teacher else {"": None}
    data = data_for(objective, context.data)
    recipe = recipe_with(context.recipe, epochs, learning_rate)
    batches = data.train.num_batches(recipe.batch_size)
    validations = recipe.num_validations(batches)
    passes = recipe.num_updates(batches) // recipe.updates_per_epoch(batches)
    if recipe.sharding is not None and (penalty or after_step or before_epoch):
        raise OptionError("train.sharding", recipe.sharding, f"null: {context.stage} works on whole weights")
    if recipe.sharding is not None and active().world == 1:
        context.reporter.note(
            f"{context.stage}: one process has all parameters; train.sharding changes nothing"
        )
    resume = context.training_state()
    if resume is not None:
        context.reporter.note(f"{context.stage}: resumes at epoch {len(resume['history']) + 1}")
    with ExitStack() as stack:
        comparisons = [
            _compare(name, student, teacher, objective, context, data.train, passes, seed, stack)
            for name, teacher in named.items()
        ]
        outputs = {c.name: c.outputs for c in comparisons if isinstance(c.outputs, TeacherOutputs)}
        for name, counts in (resume or {}).get("teacher_outputs", {}).items():
            outputs[name].load_state_dict(counts)
        result = fit(
            student,
            data,
            functools.partial(_loss, task=context.data.task, comparisons=comparisons, penalty=penalty),
            recipe,
            seed=seed,
            device=context.device,
            extra_modules=[*(c.bound for c in comparisons), *extra_modules],
            after_step=after_step,
            before_epoch=before_epoch,
            checkpoint=lambda state: context.save_training(
                {**state, "teacher_outputs": {name: each.state_dict() for name, each in outputs.items()}}
            ),
            resume=resume,
            on_epoch=lambda epoch: _record_epoch(context, epoch, validations),
            on_step=context.reporter.step,
        )
    context.details.update(epochs=epochs, best_epoch=result.best_epoch, train_seconds=result.seconds)
    if outputs:
        context.details["teacher_outputs"] = {name: each.saving() for name, each in outputs.items()}


def data_for(objective: Objective, data: Data) -> Data:
    """What a training by an objective sees: samples without labels where it compares with a teacher."""
    return with_unlabelled(data) if objective.needs_teacher else data


def _compare(
    name: str,
    student: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    context: Context,
    train: Split,
    passes: int,
    seed: int,
    stack: ExitStack,
) -> Comparison:
    bound = objective.bind(student, teacher, context.example).to(context.device)
    outputs = None
    if teacher is not None:
        outputs = TeacherOutputs(
            teacher,
            train,
            context.data.task,
            passes,
            seed=seed,
            cacheable=not bound.needs_features,
            recipe=context.recipe,
            device=context.device,
            temperatures=objective.temperatures,
            note=context.reporter.note,
        )
    return Comparison(name, bound, stack.enter_context(bound.attached(student, teacher)), outputs)


def _loss(
    model: nn.Module,
    batch: Batch,
    *,
    task: Task,
    comparisons: Sequence[Comparison],
    penalty: Callable[[], Tensor] | None,
) -> LossOutput:
    with rounded_together(model):  # a weight that is rounded as it is read is rounded once a step
        output = batch.call(model)
    return compared(output, batch, task, comparisons, penalty)


def compared(
    output: Any,
    batch: Batch,
    task: Task,
    comparisons: Sequence[Comparison],
    penalty: Callable[[], Tensor] | None = None,
) -> LossOutput:
    """The loss of what the student said of a batch: the mean over comparisons, and a penalty."""
    rows, targets = task.rows(output, batch)
    parts = [comparison(rows, targets, batch) for comparison in comparisons]
    total = parts[0][0] if len(parts) == 1 else torch.stack([part[0] for part in parts]).mean()
    terms: dict[str, Tensor] = {}
    for comparison, (_, own) in zip(comparisons, parts, strict=True):
        prefix = f"{comparison.name}." if len(parts) > 1 else ""
        terms |= {f"{prefix}{name}": term for name, term in own.items()}
    if penalty is not None:
        pulled = penalty() / of_batch().world  # each process has all of it
        total = total + pulled
        terms["penalty"] = pulled.detach()
    return LossOutput(total, terms, rows.logits, targets)


def recipe_with(recipe: Recipe, epochs: int, learning_rate: float | None) -> Recipe:
    """The recipe of one stage: its own epochs and, where it has one, its own learning rate."""
    if learning_rate is not None:
        optimizer = functools.partial(recipe.optimizer, lr=learning_rate)  # pyright: ignore[reportCallIssue]
        recipe = dataclasses.replace(recipe, optimizer=optimizer)
    return dataclasses.replace(recipe, epochs=epochs)


def _record_epoch(context: Context, epoch: EpochRecord, epochs: int) -> None:
    context.run.append_metrics({"stage": context.stage, **epoch.row()})
    context.reporter.epoch(epoch, epochs)
