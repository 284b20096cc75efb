"""Replace dense layers by factorized ones, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from compresskd import artifact
from compresskd.compression.compensation import NONE as NO_COMPENSATION
from compresskd.compression.compression import Compression, Init
from compresskd.engine.strategy import Context, State
from compresskd.layers import surgery
from compresskd.options import OptionError, checked, one_of, within
from compresskd.tasks import Inputs


@checked
@dataclass(frozen=True)
class Factorize:
    """Factorize the layers of the student, or of a copy of the teacher that becomes the student.

    Attributes:
        compression: method, size and layers.
        source: 'student', or 'teacher' to compress the teacher.
        init: 'decomposed' takes the factors of the dense weights; 'random' fresh ones of the same shapes, whose
            weights have the mean square of the dense ones (a student born in this format).

    Raises:
        OptionError: for a value out of its range.
    """

    compression: Compression
    source: Annotated[str, one_of("student", "teacher")] = "student"
    init: Init = "decomposed"

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is what is compressed."""
        return self.source == "teacher"

    @property
    def makes_student(self) -> bool:
        """Whether the student that there was does not matter."""
        return self.needs_teacher

    @property
    def wants_fresh_student(self) -> bool:
        """Whether what it leaves of the student is to be as fresh as what it makes."""
        return self.init == "random" and self.source == "student"

    def check(self, state: State, example: Inputs) -> State:
        """See `engine.strategy.Checked`: patterns fit layers, and some layer gets smaller."""
        model = self._model(state)
        with within("compression"):
            fits = self.compression.compensation
            if self.init == "random" and fits != NO_COMPENSATION:
                raise OptionError(
                    "compensation", fits, f"{NO_COMPENSATION} for fresh factors, which stand for no weight"
                )
            self.compression.check(model, example)
        return State(model, state.teacher)

    def __call__(self, state: State, context: Context) -> State:
        """Return the state with the factorized student; details record ranks and skipped layers."""
        source = model = self._model(state)
        if self.needs_teacher:
            model = artifact.thaw(surgery.lent(source))
        replaced = self.compression.apply(model, context, init=self.init)
        context.details.update(layers=replaced.layers, skipped=replaced.skipped, epochs=0)
        return State(surgery.settle(model, source) if self.needs_teacher else model, state.teacher)

    def _model(self, state: State) -> nn.Module:
        if self.source == "student":
            return state.student
        if state.teacher is None:
            raise ValueError("source='teacher' needs a teacher")
        return state.teacher
