"""How to train: one frozen value, checked where it is made."""

import functools
import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compresskd.training.precision import DTYPES

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[..., LRScheduler]


@dataclass(frozen=True)
class Recipe:
    """How to train: all that `fit` needs beside the model, the data and the loss.

    Raises ValueError that lists every value out of range: its config key, what came and what is allowed.
    """

    epochs: int  # 0: the model is evaluated and returned as it is
    batch_size: int
    optimizer: OptimizerFactory  # parameter groups -> Optimizer
    scheduler: SchedulerFactory  # (optimizer, total_steps=, steps_per_epoch=), stepped after each step
    evaluation_batch_size: int = 256
    gradient_clip: float | None = None  # largest 2-norm of all gradients together
    mixup: float | None = None  # alpha of Zhang et al. 2018; 0.2 to 1 is usual
    ema: float | None = None  # decay of the weight average per step; the average is evaluated and kept
    patience: int | None = None  # epochs without a better validation score before training stops
    precision: str = "fp32"  # autocast: fp32, bf16, fp16
    channels_last: bool = True
    compile: bool = False
    checkpoint_seconds: float = 60.0  # between two checkpoints within an epoch; one ends every epoch anyway

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise ValueError("\n".join(faults))


def _faults(recipe: Recipe) -> Iterator[str]:
    yield from _check("epochs", recipe.epochs, int, lambda v: v >= 0, "an integer, 0 or more")
    for key in ("batch_size", "evaluation_batch_size"):
        yield from _check(
            f"train.{key}", getattr(recipe, key), int, lambda v: v >= 1, "an integer, 1 or more"
        )
    # torch adds 1e-6 to the norm that it divides by: a smaller limit would leave nothing of any gradient
    yield from _optional("gradient_clip", recipe.gradient_clip, float, lambda v: v >= 1e-6, "1e-6 or more")
    yield from _optional("mixup", recipe.mixup, float, lambda v: v > 0, "greater than 0")
    yield from _optional("ema", recipe.ema, float, lambda v: 0 < v < 1, "between 0 and 1 (0.999 is usual)")
    yield from _optional("patience", recipe.patience, int, lambda v: v >= 1, "an integer, 1 or more")
    yield from _check(
        "train.checkpoint_seconds",
        recipe.checkpoint_seconds,
        float,
        lambda v: v > 0,
        "seconds, greater than 0",
    )
    if recipe.precision not in DTYPES:
        yield f"precision: came {recipe.precision!r}; allowed: {', '.join(DTYPES)}"
    for key in ("channels_last", "compile"):
        if not isinstance(getattr(recipe, key), bool):
            yield f"train.{key}: came {getattr(recipe, key)!r}; allowed: true, false"
    yield from _optimizer_faults(recipe)
    yield from _scheduler_faults(recipe)


def _optimizer_faults(recipe: Recipe) -> Iterator[str]:
    if not callable(recipe.optimizer):
        yield f"optimizer: came {recipe.optimizer!r}; allowed: a factory (YAML: _target_ and _partial_: true)"
    options = _bound(recipe.optimizer)
    if "lr" in options:
        yield from _check("optimizer.lr", options["lr"], float, lambda v: v > 0, "a number greater than 0")
    if "momentum" in options:
        yield from _check(
            "optimizer.momentum", options["momentum"], float, lambda v: 0 <= v < 1, "0 to below 1"
        )
    if options.get("nesterov") and options.get("momentum", 0) == 0:
        yield "optimizer.nesterov: came true with optimizer.momentum 0; allowed: false, or a momentum above 0"
    if "weight_decay" in options:
        yield from _check(
            "optimizer.weight_decay", options["weight_decay"], float, lambda v: v >= 0, "0 or more"
        )


def _scheduler_faults(recipe: Recipe) -> Iterator[str]:
    if not callable(recipe.scheduler):
        yield f"scheduler: came {recipe.scheduler!r}; allowed: a factory (YAML: _target_ and _partial_: true)"
    warmup = _bound(recipe.scheduler).get("warmup_epochs", 0)
    if not isinstance(recipe.epochs, int) or recipe.epochs < 1:
        return
    yield from _check(
        "scheduler.warmup_epochs",
        warmup,
        float,
        lambda v: 0 <= v < recipe.epochs,
        f"0 or more, and less than the {recipe.epochs} epochs of this training",
    )


def _bound(factory: object) -> dict[str, Any]:
    """Options that a `functools.partial` (what Hydra makes of `_partial_: true`) has bound; else none."""
    return factory.keywords if isinstance(factory, functools.partial) else {}


def _optional(key: str, value: Any, kind: type, allowed: Callable[[Any], bool], words: str) -> Iterator[str]:
    if value is not None:
        yield from _check(f"train.{key}", value, kind, allowed, f"null, or {words}")


def _check(key: str, value: Any, kind: type, allowed: Callable[[Any], bool], words: str) -> Iterator[str]:
    number = numbers.Integral if kind is int else numbers.Real
    good = (
        isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value) and allowed(value)
    )
    if not good:
        yield f"{key}: came {value!r}; allowed: {words}"
