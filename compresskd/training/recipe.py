"""How to train: one frozen value, checked where it is made."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compresskd.options import (
    Count,
    NonNegative,
    OptionError,
    Positive,
    Share,
    faults,
    one_of,
    raise_all,
)
from compresskd.training.precision import DTYPES

# a learning rate above 1000 is a slip: weights are of the size of 1
LearningRate = Annotated[float, Gt(0), Le(1000)]

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[..., LRScheduler]


@dataclass(frozen=True)
class Recipe:
    """How to train: all that `fit` needs beside the model, the data and the loss.

    Raises OptionError, of every value out of range.
    """

    epochs: Annotated[int, Ge(0), Le(1_000_000)]  # 0: the model is evaluated and returned as it is
    batch_size: Count
    optimizer: OptimizerFactory  # parameter groups -> Optimizer
    scheduler: SchedulerFactory  # (optimizer, total_steps=, steps_per_epoch=), stepped after each step
    evaluation_batch_size: Count = 256
    # torch adds 1e-6 to the norm that it divides by: a smaller limit would leave nothing of any gradient
    gradient_clip: Annotated[float, Ge(1e-6)] | None = None  # largest 2-norm of all gradients together
    gradient_accumulation: Count = (
        1  # batches whose gradients make one update, as the mean over all their rows
    )
    gradient_checkpointing: bool = (
        False  # activations are computed again in the backward pass, for less memory
    )
    dropout: Annotated[float, Ge(0), Lt(1)] | None = None  # share of values dropped; None: as the model does
    max_steps: Count | None = None  # updates in all; wins over `epochs`
    validate_every: Count | None = None  # updates between two validations; None validates after each epoch
    teacher_outputs: Count | None = (
        None  # the largest of a row that are kept, the others as one; None keeps all
    )
    teacher_bits: Annotated[int, one_of(8, 16, 32)] = 16  # of each that is kept
    mixup: Positive | None = None  # alpha of Zhang et al. 2018; 0.2 to 1 is usual
    ema: Share | None = None  # decay of the weight average per step; the average is evaluated and kept
    keep: Annotated[str, one_of("best", "last")] = "best"  # whose weights: the best epoch's, or the last's
    patience: Count | None = None  # epochs without a better validation score before training stops
    precision: Annotated[str, one_of(*DTYPES)] = "fp32"  # autocast
    channels_last: bool = True
    compile: bool = False
    sharding: Annotated[str, one_of("fsdp")] | None = (
        None  # how several processes share the parameters, while training; None: each has all
    )
    checkpoint_seconds: Positive = (
        60.0  # between two checkpoints within an epoch; one ends every epoch anyway
    )

    def __post_init__(self) -> None:
        raise_all([*faults(Recipe, vars(self)), *_faults(self)])

    def updates_per_epoch(self, batches: int) -> int:
        """How many updates an epoch of so many batches has."""
        return -(-batches // self.gradient_accumulation)

    def num_updates(self, batches: int) -> int:
        """How many updates a training has whose epochs have so many batches."""
        return self.epochs * self.updates_per_epoch(batches) if self.max_steps is None else self.max_steps

    def num_validations(self, batches: int) -> int:
        """How often it validates, if it does not stop early."""
        every = self.validate_every or self.updates_per_epoch(batches)
        return -(-self.num_updates(batches) // max(1, every))


def _faults(recipe: Recipe) -> Iterator[OptionError]:
    for name in ("optimizer", "scheduler"):
        if not callable(getattr(recipe, name)):
            yield OptionError(name, getattr(recipe, name), "a factory (YAML: _target_ and _partial_: true)")
    if recipe.sharding is not None:
        others = {"ema": recipe.ema, "compile": recipe.compile or None}
        others |= {"precision": "fp16" if recipe.precision == "fp16" else None}
        for name in (name for name, value in others.items() if value is not None):
            yield OptionError("sharding", recipe.sharding, f"null with {name}={others[name]}".lower())
    if recipe.keep == "last" and recipe.patience is not None:
        yield OptionError("patience", recipe.patience, "null with keep=last, which asks for no best epoch")
    options = _bound(recipe.optimizer)
    for error in faults(_usual_options, options):
        yield OptionError(f"optimizer.{error.field}", error.got, error.expected)
    if options.get("nesterov") and options.get("momentum", 0) == 0:
        yield OptionError("optimizer.nesterov", True, "false, or optimizer.momentum above 0")
    warmup = _bound(recipe.scheduler).get("warmup_epochs", 0)
    epochs = recipe.epochs if isinstance(recipe.epochs, int) else 0
    if epochs > 0 and not (isinstance(warmup, int | float) and 0 <= warmup < epochs):
        expected = f">= 0, and less than the {epochs} epochs of this training"
        yield OptionError("scheduler.warmup_epochs", warmup, expected)


def _usual_options(lr: Positive, momentum: Annotated[float, Ge(0), Lt(1)], weight_decay: NonNegative) -> None:
    """Options of optimizers that mean the same in all of them."""


def _bound(factory: object) -> dict[str, Any]:
    """Options that a `functools.partial` (what Hydra makes of `_partial_: true`) has bound; else none."""
    return factory.keywords if isinstance(factory, functools.partial) else {}
