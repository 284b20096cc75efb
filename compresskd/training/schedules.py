"""Learning-rate schedules, as factories `(optimizer, total_steps, steps_per_epoch) -> LRScheduler`.

The scheduler is stepped after every training step. Each parameter group keeps its own base rate. One YAML of
`conf/scheduler/` binds the options of each; a factory of the same signature from elsewhere serves as well.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from compresskd.options import Fraction, NonNegative, OptionError, Share, Whole, checked


@checked
def constant(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: NonNegative = 0.0,
    warmup_steps: Whole = 0,
    warmup_fraction: Fraction = 0.0,
) -> LRScheduler:
    """The base rate throughout, after a linear warm-up: of epochs, of updates, or of a fraction of the training."""
    warmup = _warmup(total_steps, steps_per_epoch, warmup_epochs, warmup_steps, warmup_fraction)
    return _after_warmup(optimizer, total_steps, warmup, lambda progress: 1.0)


@checked
def cosine(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: NonNegative = 0.0,
    warmup_steps: Whole = 0,
    warmup_fraction: Fraction = 0.0,
    final_fraction: Fraction = 0.0,  # of optimizer.lr
) -> LRScheduler:
    """Half a cosine from the base rate to `final_fraction` of it (Loshchilov & Hutter 2017, eq. 5)."""

    def factor(progress: float) -> float:
        return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))

    warmup = _warmup(total_steps, steps_per_epoch, warmup_epochs, warmup_steps, warmup_fraction)
    return _after_warmup(optimizer, total_steps, warmup, factor)


@checked
def multistep(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    milestones: Sequence[Share] = (0.5, 0.75),
    gamma: Annotated[float, Gt(0), Le(1)] = 0.1,
    warmup_epochs: NonNegative = 0.0,
    warmup_steps: Whole = 0,
    warmup_fraction: Fraction = 0.0,
) -> LRScheduler:
    """Multiply the rate by `gamma` at each milestone.

    milestones: fractions of the training, so that another number of epochs needs no other milestones:
    (0.5, 0.75) are those of He et al. 2016 (section 4.2) for CIFAR-10.
    """
    if not milestones or not all(a < b for a, b in pairwise(milestones)):
        expected = "rising fractions of the training (for epochs 150 and 180 of 240 write [0.625, 0.75])"
        raise OptionError("milestones", milestones, expected)
    steps = [round(m * total_steps) for m in milestones]
    warmup = _warmup(total_steps, steps_per_epoch, warmup_epochs, warmup_steps, warmup_fraction)

    def factor(step: int) -> float:
        return _warmup_factor(step, warmup) * gamma ** sum(step >= milestone for milestone in steps)

    return LambdaLR(optimizer, factor)


@checked
def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    pct_start: Share = 0.3,  # of the training
    div_factor: Annotated[float, Ge(1)] = 25.0,
    final_div_factor: Annotated[float, Ge(1)] = 1e4,
) -> LRScheduler:
    """Rise from lr / div_factor to lr over `pct_start` of the steps, then fall by a cosine.

    Smith & Topin 2018, 'Super-Convergence'.

    The momentum (beta1 of Adam) goes the other way, from 0.95 to 0.85 and back, where the optimizer has one.
    `steps_per_epoch` is not used: the cycle is one, whatever the epochs.
    """
    if abs(pct_start * total_steps - 1.0) < 1e-6:
        # torch divides by the length of the rise less one step, which is zero here.
        pct_start *= 0.99
    defaults = optimizer.defaults
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=bool(defaults.get("momentum")) or "betas" in defaults,
    )


def _after_warmup(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int,
    factor: Callable[[float], float],
) -> LRScheduler:
    """`factor` maps the progress 0..1 of what comes after the warm-up to a multiple of the base rate."""

    def multiple(step: int) -> float:
        if step < warmup_steps:
            return _warmup_factor(step, warmup_steps)
        return factor((step - warmup_steps) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, multiple)


def _warmup(total_steps: int, steps_per_epoch: int, epochs: float, steps: int, fraction: float) -> int:
    """The updates of a warm-up, of which one option says how long it is.

    Raises OptionError where several do, or it would take all of the training.
    """
    given = {"warmup_epochs": epochs, "warmup_steps": steps, "warmup_fraction": fraction}
    said = [name for name, value in given.items() if value]
    if len(said) > 1:
        raise OptionError(said[1], given[said[1]], f"0 beside {said[0]}={given[said[0]]:g}: one of them")
    found = round(epochs * steps_per_epoch) + steps + round(fraction * total_steps)
    if not 0 <= found < total_steps:
        name = said[0] if said else "warmup_epochs"
        length = {
            "warmup_epochs": f"{total_steps / steps_per_epoch:g} epochs",
            "warmup_steps": f"{total_steps} updates",
            "warmup_fraction": "1 that is all",
        }
        raise OptionError(name, given[name], f">= 0, and less than the {length[name]} of this training")
    return found


def _warmup_factor(step: int, warmup_steps: int) -> float:
    # The first step has 1 / warmup_steps, not 0: an update by nothing would be a wasted step.
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
