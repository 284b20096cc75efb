"""Optimizers and schedules tried on a parameter of no meaning, so that what they refuse is known beforehand."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from compresskd.optimizer import make_optimizer
from compresskd.options import OptionError
from compresskd.options import faults as judged
from compresskd.training.recipe import LearningRate, Recipe

_STEPS_PER_EPOCH = (
    10_000  # many, so that nothing is refused for being rounded; a training's own are tried with it
)
_STEPS = 20


def factory_faults(recipe: Recipe) -> Iterator[OptionError]:
    """What is wrong with the options of optimizer and scheduler."""
    bound = recipe.optimizer.keywords if isinstance(recipe.optimizer, functools.partial) else {}
    rates = [OptionError(f"optimizer.{e.field}", e.got, e.expected) for e in judged(_plausible, bound)]
    faults = [*rates, *_blamed("optimizer", recipe.optimizer, _step)]
    yield from faults
    if not faults and recipe.epochs:
        yield from _blamed("scheduler", recipe.scheduler, lambda factory: _schedule(factory, recipe))


def _plausible(lr: LearningRate) -> None:
    """A rate beyond which no training survives."""


def _optimizer(factory: Callable[..., Optimizer]) -> Optimizer:
    groups = [{"params": [_parameter(2, 2)]}, {"params": [_parameter(2)], "weight_decay": 0.0}]
    optimizer = make_optimizer(factory, groups)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    return optimizer


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _step(factory: Callable[..., Optimizer]) -> None:
    optimizer = _optimizer(factory)
    for _ in range(3):
        optimizer.step()


def _schedule(factory: Callable[..., Any], recipe: Recipe) -> None:
    optimizer = _optimizer(recipe.optimizer)
    scheduler = factory(
        optimizer, total_steps=recipe.epochs * _STEPS_PER_EPOCH, steps_per_epoch=_STEPS_PER_EPOCH
    )
    for step in range(_STEPS):
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
            raise ValueError(f"learning rate {rates[0]} at step {step}; expected finite ones, 0 or more")
        optimizer.step()
        scheduler.step()


def _blamed(key: str, factory: Callable[..., Any], attempt: Callable[[Any], None]) -> Iterator[OptionError]:
    """Nothing where a factory passes; else its options that do not: those without which it would, or those alone."""
    error = _error(attempt, factory)
    if error is None:
        return
    bound = dict(factory.keywords) if isinstance(factory, functools.partial) else {}
    without = {n: _error(attempt, _of(factory, {k: v for k, v in bound.items() if k != n})) for n in bound}
    blamed = {name: error for name, other in without.items() if other is None}
    if not blamed:
        alone = {name: _error(attempt, _of(factory, {name: value})) for name, value in bound.items()}
        blamed = {name: other for name, other in alone.items() if other is not None}
    for name, other in blamed.items():
        yield _said(f"{key}.{name}", bound[name], other)
    if not blamed:
        yield _said(key, bound, error)


def _said(field: str, got: Any, error: Exception) -> OptionError:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, OptionError) and field.endswith(f".{error.field}"):
        return OptionError(field, got, error.expected)
    return OptionError(field, got, f"what {field.partition('.')[0]} takes: {text}")


def _of(factory: Any, options: Mapping[str, Any]) -> Any:
    return functools.partial(factory.func, *factory.args, **options)


def _error(attempt: Callable[[Any], None], factory: Any) -> Exception | None:
    try:
        attempt(factory)
    except Exception as error:  # an optimizer may be the user's own
        return error
    return None
