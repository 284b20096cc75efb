"""What stays the same from the first step of a training to its last."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from compresskd.data.base import Data
from compresskd.training.history import EpochRecord, StepProgress
from compresskd.training.interrupt import Interrupt
from compresskd.training.loss import LossFunction
from compresskd.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The arguments of `fit`, and what follows from them."""

    data: Data
    loss: LossFunction
    recipe: Recipe
    seed: int
    steps: int  # per epoch
    forward: nn.Module  # the model, or its compiled form
    cast: AbstractContextManager
    interrupt: Interrupt
    after_step: Callable[[int], None] | None
    before_epoch: Callable[[int], None] | None
    checkpoint: Callable[[dict[str, Any]], None] | None
    on_epoch: Callable[[EpochRecord], None] | None
    on_step: Callable[[StepProgress], None] | None

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on to resume this training."""
        return {
            "seed": self.seed,
            "epochs": self.recipe.epochs,
            "batch_size": self.recipe.batch_size,
            "steps_per_epoch": self.steps,
            "data": self.data.batches_fingerprint,
        }
