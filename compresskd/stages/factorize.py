"""Replace dense layers by factorized ones, without training."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from compresskd import artifact
from compresskd.compression.compression import INITS, Compression
from compresskd.engine.strategy import Context, State

SOURCES = ("student", "teacher")


@dataclass(frozen=True)
class Factorize:
    """Factorize the layers of the student, or of a copy of the teacher that becomes the student.

    Attributes:
        compression: method, size and layers.
        source: 'student', or 'teacher' to compress the teacher.
        init: 'decomposed' takes the factors of the dense weights; 'random' fresh ones of the same shapes, which
            keep the variance of activations (a student born in this format).

    Raises:
        ValueError: for a value out of its range.
    """

    compression: Compression
    source: str = "student"
    init: str = "decomposed"

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source: came {self.source!r}; allowed: {', '.join(SOURCES)}")
        if self.init not in INITS:
            raise ValueError(f"init: came {self.init!r}; allowed: {', '.join(INITS)}")

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is what is compressed."""
        return self.source == "teacher"

    def check(self, state: State, example: Tensor) -> State:
        """See `compresskd.engine.strategy.Checked`: patterns fit layers, and some layer gets smaller."""
        model = self._model(state)
        self.compression.check(model, example)
        return State(model, state.teacher)

    def __call__(self, state: State, context: Context) -> State:
        """Return the state with the factorized student; details record ranks and skipped layers."""
        model = self._model(state)
        if self.needs_teacher:
            model = artifact.thaw(copy.deepcopy(model))
        replaced = self.compression.apply(model, context, init=self.init)
        context.details.update(layers=replaced.layers, skipped=replaced.skipped, epochs=0)
        return State(model, state.teacher)

    def _model(self, state: State) -> nn.Module:
        if self.source == "student":
            return state.student
        if state.teacher is None:
            raise ValueError("source='teacher' needs a teacher")
        return state.teacher
