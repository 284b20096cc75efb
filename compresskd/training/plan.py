"""What stays the same from the first step of a training to its last."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from compresskd.data.base import Data
from compresskd.distributed import ALONE, Group
from compresskd.distributed.gradients import Gradients
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
    steps: int  # batches of an epoch
    forward: nn.Module  # the model, or its compiled form
    cast: AbstractContextManager
    interrupt: Interrupt
    after_step: Callable[[int], None] | None
    before_epoch: Callable[[int], None] | None
    checkpoint: Callable[[dict[str, Any]], None] | None
    on_epoch: Callable[[EpochRecord], None] | None
    on_step: Callable[[StepProgress], None] | None
    gradients: Gradients
    group: Group = ALONE  # the processes that train together

    @property
    def updates(self) -> int:
        """Of the whole training."""
        return self.recipe.num_updates(self.steps)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on to resume this training."""
        loop = {
            name: getattr(self.recipe, name)
            for name in ("gradient_accumulation", "max_steps", "validate_every", "keep")
        }
        defaults = {"gradient_accumulation": 1, "max_steps": None, "validate_every": None, "keep": "best"}
        return {
            **{name: value for name, value in loop.items() if value != defaults[name]},
            "seed": self.seed,
            "epochs": self.recipe.epochs,
            "batch_size": self.recipe.batch_size,
            "steps_per_epoch": self.steps,
            "data": self.data.batches_fingerprint,
        }
