"""A training tried on copies before anything is trained: both sizes of batch that will come, a step on each."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd.data.base import Batch, Data, Split
from compresskd.engine.strategy import State
from compresskd.stages.fit import teachers_of
from compresskd.stages.teacher_outputs import TeacherOutputs
from compresskd.stages.train_student import Comparison, Training, compared, recipe_with
from compresskd.training import LossOutput, NonFiniteLoss, Recipe, fit
from compresskd.training.dry_run import rate_faults

_NUM_EVALUATED = 2  # validation samples that are scored after the steps
_EPOCHS = 2  # over the few samples: a rate that is absurd shows within as many steps


class _Misfit(ValueError):
    """'key: what is wrong', found in the forward pass."""


def try_training(
    stage: str, training: Training, state: State, data: Data, recipe: Recipe, device: torch.device
) -> None:
    """Train a copy of the student for a few steps, on full batches and on the smaller one that is left over.

    The student has the structure with which the stage begins and is trained as the stage will do it, but for
    compilation. No model, no running statistic and no generator of random numbers is changed.

    Raises:
        ValueError: 'key: what is wrong', with the key to change: of the recipe, of the student, or of the objective.
    """
    recipe = _of_stage(stage, training, recipe)
    if not training.epochs:
        return
    steps = data.train.num_batches(recipe.batch_size)
    trial = dataclasses.replace(
        recipe,
        epochs=_EPOCHS,
        compile=False,
        # the schedule that it will have, not that of so short a training
        scheduler=lambda optimizer, **_: recipe.scheduler(
            optimizer, total_steps=recipe.epochs * steps, steps_per_epoch=steps
        ),
    )
    sample = _sample(data, recipe.batch_size, device)
    student = copy.deepcopy(state.student).to(device)
    teachers = {
        name: copy.deepcopy(teacher).to(device)
        for name, teacher in teachers_of(training.teacher, state, student).items()
        if training.objective.needs_teacher
    }
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators), ExitStack() as stack:
        gradients = stack.enter_context(_gradients(student))
        comparisons = _comparisons(student, teachers, training, sample, trial, device, stack)
        loss = functools.partial(_loss, stage=stage, comparisons=comparisons, batch_size=recipe.batch_size)
        try:
            fit(
                student,
                sample,
                loss,
                trial,
                seed=0,
                device=device,
                extra_modules=[c.bound for c in comparisons],
            )
        except NonFiniteLoss as error:
            raise ValueError(_diverged(stage, error, gradients, training)) from error
        except _Misfit as error:
            raise ValueError(str(error)) from error.__cause__
        except (
            Exception
        ) as error:  # of the backward pass, or the optimizer: code of the user's own may be at fault
            raise ValueError(f"student: cannot be trained: {_first_line(error)}") from error
    if not all(map(math.isfinite, gradients)):
        raise ValueError(_no_number(stage, "its gradient is not finite", training))


def _of_stage(stage: str, training: Training, recipe: Recipe) -> Recipe:
    try:
        made = recipe_with(recipe, training.epochs, training.learning_rate)
        faults = list(rate_faults(made))
        if faults:
            raise ValueError("\n".join(faults))
        return made
    except ValueError as error:  # a warm-up that is longer than this stage
        lines = [f"{line} (stage {stage})" for line in str(error).splitlines()]
        raise ValueError("\n".join(lines).replace("optimizer.lr", _rate_key(stage, training))) from error


def _sample(data: Data, batch_size: int, device: torch.device) -> Data:
    """As many training samples as give one batch of each size that will come, and a little validation."""
    batch_size = min(batch_size, len(data.train))
    rest = len(data.train) % batch_size
    return dataclasses.replace(
        data,
        train=_first(data.train, batch_size + (rest if rest > 1 else 0)).to(device),
        validation=_first(data.validation, _NUM_EVALUATED).to(device),
    )


def _first(split: Split, count: int) -> Split:
    return dataclasses.replace(split, rows=split.rows[:count], targets=split.targets[:count])


def _comparisons(
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    training: Training,
    sample: Data,
    recipe: Recipe,
    device: torch.device,
    stack: ExitStack,
) -> list[Comparison]:
    example = next(iter(sample.validation.batches(1))).inputs
    found = []
    for name, teacher in (teachers or {"": None}).items():
        bound = training.objective.bind(student, teacher, example).to(device)
        outputs = teacher and TeacherOutputs(
            teacher, sample.train, 1, seed=0, cacheable=False, recipe=recipe, device=device
        )
        found.append(Comparison(name, bound, stack.enter_context(bound.attached(student, teacher)), outputs))
    return found


@contextmanager
def _gradients(student: nn.Module) -> Iterator[list[float]]:
    """The norm of each gradient of a parameter, in the order in which they come."""
    norms: list[float] = []
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p: norms.append(float(p.grad.norm())))
        for parameter in student.parameters()
        if parameter.requires_grad
    ]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


def _loss(
    model: nn.Module, batch: Batch, *, stage: str, comparisons: list[Comparison], batch_size: int
) -> LossOutput:
    with parametrize.cached():
        output = _output(model, batch.inputs, batch_size)
    try:
        return LossOutput(*compared(output, batch, comparisons))
    except Exception as error:  # a term may be the user's own code
        text = f"does not compute on a batch of {len(batch.inputs)}: {_first_line(error)}"
        raise _Misfit(f"strategy.stages.{stage}.objective: {text}") from error


def _output(model: nn.Module, inputs: Tensor, batch_size: int) -> Any:
    """What the model says in training mode of a batch; ValueError where that is no finite logits."""
    try:
        output = model(inputs)
    except Exception as error:  # a model may be the user's own code
        if _takes(model, torch.cat([inputs, inputs])):
            left = "" if len(inputs) == batch_size else f", of which the last batch has {len(inputs)}"
            raise _Misfit(
                f"train.batch_size: came {batch_size}{left}; the student does not train on a batch of {len(inputs)} "
                f"({_first_line(error)}); write another size"
            ) from error
        raise _Misfit(
            f"student: fails in training mode on a batch of {len(inputs)}: {_first_line(error)}"
        ) from error
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise _Misfit(
            f"student: in training mode it returns a {type(logits).__name__}; expected logits [B, K], as in evaluation"
        )
    if len(logits) != len(inputs):
        raise _Misfit(f"student: in training mode it returns {list(logits.shape)} for {len(inputs)} samples")
    if not bool(logits.isfinite().all()):
        raise _Misfit("student: returns values that are not finite on training samples, before any training")
    return output


@torch.no_grad()
def _takes(model: nn.Module, inputs: Tensor) -> bool:
    try:
        model(inputs)
    except Exception:
        return False
    return True


def _diverged(stage: str, error: NonFiniteLoss, gradients: list[float], training: Training) -> str:
    if error.step == 0 or not all(map(math.isfinite, gradients)):
        bad = ", ".join(f"{name} = {value:g}" for name, value in error.values.items())
        return _no_number(stage, f"the loss is no number on training samples ({bad})", training)
    key = _rate_key(stage, training)
    return f"{key}: the loss is not finite any more after a few steps (stage {stage}); write a smaller one"


def _rate_key(stage: str, training: Training) -> str:
    if training.learning_rate is None:
        return "optimizer.lr"
    return training.learning_rate_key or f"strategy.stages.{stage}.learning_rate"


def _no_number(stage: str, text: str, training: Training) -> str:
    """What is said of an objective, with the numbers that its terms were given."""
    options = "; ".join(
        f"{name}: " + ", ".join(f"{k}={v:g}" for k, v in vars(term).items() if _is_number(v))
        for name, term in training.objective.active.items()
    )
    return f"strategy.stages.{stage}.objective: {text}; its terms are {options}; write numbers of usual size"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
