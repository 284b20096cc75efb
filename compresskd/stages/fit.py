"""Train the student by an objective: plain training, distillation, fine-tuning."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from compresskd.compression.compression import Compression
from compresskd.engine.strategy import Context, State
from compresskd.kd.logits import Temperature
from compresskd.kd.objective import Objective
from compresskd.options import Fraction, Whole, checked, one_of, within
from compresskd.stages.train_student import Training, train_student
from compresskd.tasks import Inputs
from compresskd.training import LearningRate

Which = Annotated[str, one_of("original", "previous", "both")]  # of the teachers that a stage may have


@checked
@dataclass(frozen=True)
class Fit:
    """Train the student.

    Attributes:
        objective: what is minimised; where it compares with a teacher, the state must hold one.
        epochs: passes over the training split; 0 leaves the student as it is.
        teacher: 'original' is the run's teacher; 'previous' the student as the stage finds it, frozen; 'both'
            takes the mean of the objective against each.
        learning_rate: replaces `optimizer.lr` in this stage; None keeps it.
        alpha: replaces the share of the teacher in `objective` (see `Objective.reweighted`); None keeps it.
        temperature: replaces the temperature of `objective`; None keeps it.

    Raises:
        OptionError: for a value out of its range.
    """

    objective: Objective
    epochs: Whole
    teacher: Which = "original"
    learning_rate: LearningRate | None = None
    alpha: Fraction | None = None
    temperature: Temperature | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None or self.temperature is not None:
            balanced = self.objective.reweighted(alpha=self.alpha, temperature=self.temperature)
            object.__setattr__(self, "objective", balanced)

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective compares with the run's teacher."""
        return self.objective.needs_teacher and self.teacher != "previous"

    @property
    def training(self) -> Training:
        """What is going to be trained, for a trial beforehand."""
        return Training(self.objective, self.epochs, self.teacher, self.learning_rate)

    def check(self, state: State, example: Inputs) -> State:
        """See `engine.strategy.Checked`: the objective finds in both models what it compares."""
        check_objective(self.objective, self.teacher, state, state.student, example)
        return state

    def __call__(self, state: State, context: Context) -> State:
        """Train `state.student` in place; the weights of the best validation epoch are kept."""
        train_student(
            state.student,
            teachers_of(self.teacher, state, state.student),
            self.objective,
            context,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
        )
        return state


class Reducing:
    """What stages have in common that train the student while they bring it to a smaller size."""

    compression: Compression
    objective: Objective
    epochs: int
    teacher: str

    @property
    def needs_teacher(self) -> bool:
        """Whether the run's teacher takes part."""
        return self.objective.needs_teacher and self.teacher != "previous"

    @property
    def training(self) -> Training:
        """What is going to be trained, for a trial beforehand."""
        return Training(self.objective, self.epochs, self.teacher)

    def check(self, state: State, example: Inputs) -> State:
        """See `engine.strategy.Checked`: the size can be reached, and the objective finds what it compares."""
        with within("compression"):
            self.compression.check(state.student, example)
        check_objective(self.objective, self.teacher, state, state.student, example)
        return state


def check_objective(
    objective: Objective, which: str, state: State, student: nn.Module, example: Inputs
) -> None:
    """See that an objective finds in both models what it compares; `student` as the stage will train it.

    Raises:
        OptionError: of `objective`.
    """
    with within("objective"):
        for teacher in teachers_of(which, state, state.student).values():
            objective.bind(student, teacher, example)


def teachers_of(which: str, state: State, previous: nn.Module) -> dict[str, nn.Module]:
    """The teachers by name; `previous` is copied and frozen, since training changes the student in place."""
    teachers: dict[str, nn.Module] = {}
    if which in ("original", "both") and state.teacher is not None:
        teachers["original"] = state.teacher
    if which in ("previous", "both"):
        teachers["previous"] = copy.deepcopy(previous).eval().requires_grad_(False)
    return teachers
