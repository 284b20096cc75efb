"""Train the student by an objective: plain training, distillation, fine-tuning."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from dataclasses import dataclass

import torch
from torch import nn

from compresskd.data.base import Batch
from compresskd.objective import BoundObjective, Objective, Tapped
from compresskd.stages.teacher_outputs import TeacherOutputs
from compresskd.strategy import Context, State
from compresskd.training import FitResult, LossOutput, Recipe, fit


@dataclass(frozen=True)
class Fit:
    """Train the student.

    Attributes:
        objective: what is minimised; where it compares with a teacher, the state must hold one.
        epochs: passes over the training split; 0 leaves the student as it is.
        learning_rate: replaces `optimizer.lr` in this stage; None keeps it.
        alpha: replaces the share of the teacher in `objective` (see `Objective.reweighted`); None keeps it.
        temperature: replaces the temperature of `objective`; None keeps it.

    Raises:
        ValueError: for a value out of its range.
    """

    objective: Objective
    epochs: int
    learning_rate: float | None = None
    alpha: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs: came {self.epochs}; allowed: 0 (no training) or more")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate: came {self.learning_rate}; allowed: above 0, or null")
        if self.alpha is not None or self.temperature is not None:
            balanced = self.objective.reweighted(alpha=self.alpha, temperature=self.temperature)
            object.__setattr__(self, "objective", balanced)

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective compares with a teacher."""
        return self.objective.needs_teacher

    def __call__(self, state: State, context: Context) -> State:
        """Train `state.student` in place; the weights of the best validation epoch are kept."""
        student, teacher = state.student, state.teacher if self.needs_teacher else None
        seed = stage_seed(context.seed, context.stage)
        torch.manual_seed(seed)
        bound = self.objective.bind(student, teacher, context.example).to(context.device)
        resume = context.training_state()
        if resume is not None:
            context.reporter.note(f"{context.stage}: goes on at epoch {len(resume['history']) + 1}")
        outputs = None
        if teacher is not None:
            outputs = TeacherOutputs(
                teacher,
                context.data.train,
                self.epochs,
                seed=seed,
                cacheable=not bound.needs_features,
                recipe=context.recipe,
                device=context.device,
            )
        with bound.attached(student, teacher) as tapped:
            result = fit(
                student,
                context.data,
                functools.partial(_loss, bound=bound, tapped=tapped, outputs=outputs),
                self._recipe(context.recipe),
                seed=seed,
                device=context.device,
                extra_modules=[bound],
                checkpoint=context.save_training,
                resume=resume,
                on_epoch=lambda epoch: _record_epoch(context, epoch, self.epochs),
                on_step=context.reporter.step,
            )
        context.details.update(_details(result, outputs, self.epochs))
        return State(student, state.teacher)

    def _recipe(self, recipe: Recipe) -> Recipe:
        if self.learning_rate is not None:
            optimizer = functools.partial(recipe.optimizer, lr=self.learning_rate)  # pyright: ignore[reportCallIssue]
            recipe = dataclasses.replace(recipe, optimizer=optimizer)
        return dataclasses.replace(recipe, epochs=self.epochs)


def stage_seed(seed: int, stage: str) -> int:
    """The seed of a stage: differs between stages and does not depend on which others run before it."""
    return zlib.crc32(f"{seed}/{stage}".encode())


def _loss(
    model: nn.Module, batch: Batch, *, bound: BoundObjective, tapped: Tapped, outputs: TeacherOutputs | None
) -> LossOutput:
    teacher = None if outputs is None else tapped.teacher(outputs(batch))
    student = tapped.student(model(batch.inputs))
    total, terms = bound(student, teacher, batch.targets)
    return LossOutput(total, terms, student.logits)


def _record_epoch(context: Context, epoch, epochs: int) -> None:
    context.run.append_metrics({"stage": context.stage, **dataclasses.asdict(epoch)})
    context.reporter.epoch(epoch, epochs)


def _details(result: FitResult, outputs: TeacherOutputs | None, epochs: int) -> dict:
    details: dict = {"epochs": epochs, "best_epoch": result.best_epoch, "train_seconds": result.seconds}
    if outputs is not None:
        details["teacher_outputs"] = outputs.saving()
    return details
