"""A training tried on copies before anything is trained: both sizes of batch that will come, a step on each."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers
from compresskd.data.base import Data, Split
from compresskd.engine.strategy import State
from compresskd.kd.objective import Objective
from compresskd.models.build import spec_of
from compresskd.models.vocabulary import remedy, takes
from compresskd.options import OptionError
from compresskd.quant.activation import ActivationQuant
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.together import rounded_together
from compresskd.stages.fit import teachers_of
from compresskd.stages.teacher_outputs import TeacherOutputs
from compresskd.stages.train_student import Comparison, Training, compared, data_for, recipe_with
from compresskd.tasks import Batch, Inputs, Task, logits_of, map_inputs
from compresskd.training import LossOutput, NonFiniteLoss, Recipe, fit
from compresskd.training.dropout import rates_of
from compresskd.training.loop import can_checkpoint
from compresskd.training.teacher_targets import with_targets_of

_NUM_EVALUATED = 2  # validation samples that are scored after the steps
_UPDATES = 2  # at least, and a step on each batch that is tried: a rate that is absurd shows within as many


def check_answers(model: nn.Module, batches: Sequence[Batch], task: Task, num_classes: int) -> None:
    """See that a model, as built, has ordinary parameters and answers as the task needs.

    Args:
        batches: of two samples, and of one: the last batch of a split, and what is timed, may be one sample.
        num_classes: how many outputs the data ask for.

    Raises:
        OptionError: of the number of classes where that is an option of the model, else of the whole model.
    """
    for name, parameter in model.named_parameters():
        if (parameter.is_floating_point() or parameter.is_complex()) and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            expected = "float32 parameters; write precision=bf16 or fp16 for half precision"
            raise OptionError("", f"{name} of {kind}", expected)
    for batch in batches:
        samples = f"{len(batch)} samples of {_shapes(batch.inputs)}"
        try:
            with torch.inference_mode():
                output = batch.call(model.eval())
        except Exception as error:  # a model may be the user's own code
            said = f"takes {samples}: {_first_line(error)}{remedy(model, batch.inputs, error)}"
            raise _of_student(model, said, "") from error
        try:
            logits = logits_of(output)
        except TypeError as error:
            raise OptionError("", type(output).__name__, f"logits for {samples}") from error
        fault = task.output_fault(logits, batch, num_classes)
        if fault is None:
            _check_model(model, batch, task)
            continue
        others = logits.shape[-1:] != (num_classes,)
        if others and task.output_fault(logits, batch, logits.shape[-1] if logits.ndim else 0) is None:
            field = "num_classes" if "num_classes" in spec_of(model)["kwargs"] else ""
            raise OptionError(field, logits.shape[-1], f"{num_classes}, as many classes as the data has")
        raise OptionError("", list(logits.shape), f"{fault} (of {samples})")


def _check_model(model: nn.Module, batch: Batch, task: Task) -> None:
    """Raise OptionError for outputs of the right shape that the model has come to in the wrong way."""
    fault = task.model_fault(model, batch)
    if fault is None:
        return
    if getattr(getattr(model, "config", None), "is_decoder", None) is False:
        raise OptionError("config.is_decoder", False, f"true: {fault}")
    raise OptionError("", type(model).__name__, fault)


def _shapes(inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        return f"shape {list(inputs.shape[1:])}"
    return ", ".join(
        f"{name} {list(tensor.shape[1:])}"
        + ("" if tensor.is_floating_point() else f" up to {int(tensor.max())}")
        for name, tensor in inputs.items()
    )


def try_training(
    stage: str, training: Training, state: State, data: Data, recipe: Recipe, device: torch.device
) -> None:
    """Train a copy of the student for a few steps, on full batches and on the smaller one that is left over.

    The student has the structure with which the stage begins and is trained as the stage will do it, but for
    compilation. No model, no running statistic and no generator of random numbers is changed.

    Raises:
        OptionError: of the recipe, of the training (its learning rate, its objective), or of the student.
    """
    recipe = _of_stage(stage, training, recipe)
    if not training.epochs:
        return
    _check_recipe(recipe, state.student)
    if recipe.sharding is not None:
        _check_sharding(recipe.sharding, state.student)
    objective = training.objective
    steps = data_for(objective, data).train.num_batches(recipe.batch_size)
    sample = data_for(objective, _sample(data, recipe.batch_size, device))
    trial = dataclasses.replace(
        recipe,
        epochs=-(-_UPDATES // recipe.updates_per_epoch(sample.train.num_batches(recipe.batch_size))),
        compile=False,
        max_steps=None,
        validate_every=None,
        # the schedule that it will have, not that of so short a training
        scheduler=lambda optimizer, **_: recipe.scheduler(
            optimizer, total_steps=recipe.num_updates(steps), steps_per_epoch=recipe.updates_per_epoch(steps)
        ),
    )
    student = copy.deepcopy(state.student).to(device)
    teachers = {
        name: copy.deepcopy(teacher).to(device)
        for name, teacher in teachers_of(training.teacher, state, student).items()
        if objective.needs_teacher
    }
    sample = with_targets_of(next(iter(teachers.values()), student), sample, batch_size=_NUM_EVALUATED)
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators), ExitStack() as stack:
        gradients = stack.enter_context(_gradients(student))
        comparisons = _comparisons(student, teachers, training, sample, trial, device, stack)
        if recipe.sharding is not None and any(
            p.requires_grad for c in comparisons for p in c.bound.parameters()
        ):
            expected = "null with terms that train a projection of their own (kd=fitnets)"
            raise OptionError("recipe.sharding", recipe.sharding, expected)
        loss = functools.partial(_loss, task=data.task, comparisons=comparisons, batch_size=recipe.batch_size)
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
            raise _diverged(stage, error, gradients, training, recipe) from error
        except OptionError:
            raise
        except (
            Exception
        ) as error:  # of the backward pass, or the optimizer: code of the user's own may be at fault
            raise _of_student(student, f"can be trained: {_first_line(error)}") from error
    if not all(map(math.isfinite, gradients)):
        raise _no_number("a finite gradient", training)


def _check_recipe(recipe: Recipe, student: nn.Module) -> None:
    if recipe.gradient_checkpointing and not can_checkpoint(student):
        expected = f"false: {type(student).__name__} has no gradient_checkpointing_enable()"
        raise OptionError("recipe.gradient_checkpointing", True, expected)
    if recipe.dropout is not None and not any(rates_of(student)):
        expected = f"null: {type(student).__name__} has no dropout"
        raise OptionError("recipe.dropout", recipe.dropout, expected)


def _check_sharding(sharding: str, student: nn.Module) -> None:
    """Refuse parts of weights of a model that has no parts of one."""
    reduced = (
        m for m in student.modules() if layers.is_factorized(m) or isinstance(m, FakeQuant | ActivationQuant)
    )
    held = next((type(m).__name__ for m in reduced), None)
    single = next((name for name, p in student.named_parameters() if p.ndim == 0), None)
    if held is not None:
        expected = f"null: {held} computes from whole weights"
    elif single is not None:
        expected = f"null: {single} is one number, which has no parts"
    else:
        return
    raise OptionError("recipe.sharding", sharding, expected)


def _of_stage(stage: str, training: Training, recipe: Recipe) -> Recipe:
    try:
        return recipe_with(recipe, training.epochs, training.learning_rate)
    except OptionError as error:  # a warm-up that is longer than this stage
        raise OptionError(f"recipe.{error.field}", error.got, f"{error.expected} (stage {stage})") from error


def _sample(data: Data, batch_size: int, device: torch.device) -> Data:
    """As many training samples as give one batch of each size that will come, and a little validation."""

    def few(split: Split) -> Split:
        size = min(batch_size, len(split))
        rest = len(split) % size
        return _first(split, size + (rest if rest > 1 else 0)).to(device)

    return dataclasses.replace(
        data,
        train=few(data.train),
        validation=_first(data.validation, _NUM_EVALUATED).to(device),
        unlabelled=None if data.unlabelled is None else few(data.unlabelled),
    )


def _first(split: Split, count: int) -> Split:
    return split.take(torch.arange(min(count, len(split))), split.fingerprint)


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
            teacher,
            sample.train,
            sample.task,
            1,
            seed=0,
            cacheable=False,
            recipe=recipe,
            device=device,
            temperatures=training.objective.temperatures,
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
    model: nn.Module, batch: Batch, *, task: Task, comparisons: list[Comparison], batch_size: int
) -> LossOutput:
    with rounded_together(model):
        output = _output(model, batch, batch_size)
    try:
        return compared(output, batch, task, comparisons)
    except Exception as error:  # a term may be the user's own code
        expected = f"terms that compute on a batch of {len(batch)}: {_first_line(error)}"
        raise _of_objective(expected, comparisons[0].bound.objective) from error


def _output(model: nn.Module, batch: Batch, batch_size: int) -> Any:
    """What the model says in training mode of a batch; ValueError where that is no finite logits."""
    try:
        output = batch.call(model)
    except Exception as error:  # a model may be the user's own code
        if takes(model, map_inputs(lambda tensor: torch.cat([tensor, tensor]), batch.inputs)):
            left = "" if len(batch) == batch_size else ", the last one,"
            expected = f"another size: the student does not train on a batch{left} of {len(batch)}"
            raise OptionError(
                "recipe.batch_size", batch_size, f"{expected} ({_first_line(error)})"
            ) from error
        raise _of_student(model, f"trains on a batch of {len(batch)}: {_first_line(error)}") from error
    try:
        logits = logits_of(output)
    except TypeError as error:
        said = f"not a {type(output).__name__}, as in evaluation"
        raise _of_student(model, f"returns logits in training mode, {said}") from error
    if len(logits) != len(batch):
        raise _of_student(model, f"returns {len(batch)} logits in training mode, not {list(logits.shape)}")
    if not bool(logits.isfinite().all()):
        raise _of_student(model, "returns finite values on training samples before any training")
    return output


def _of_student(model: nn.Module, what: str, field: str = "student") -> OptionError:
    return OptionError(field, type(model).__name__, f"a model that {what}")


def _diverged(
    stage: str, error: NonFiniteLoss, gradients: list[float], training: Training, recipe: Recipe
) -> OptionError:
    if error.step == 0 or not all(map(math.isfinite, gradients)):
        bad = ", ".join(f"{name} = {value:g}" for name, value in error.values.items())
        return _no_number(f"a finite loss on training samples, not {bad}", training)
    expected = f"a smaller one: the loss is not finite any more after a few steps (stage {stage})"
    if training.learning_rate is None:
        rate = getattr(recipe.optimizer, "keywords", {}).get("lr")
        return OptionError("recipe.optimizer.lr", rate, expected)
    return OptionError(f"training.{training.learning_rate_field}", training.learning_rate, expected)


def _no_number(expected: str, training: Training) -> OptionError:
    return _of_objective(f"{expected}; write numbers of usual size", training.objective)


def _of_objective(expected: str, objective: Objective) -> OptionError:
    """What is said of an objective, with the numbers that its terms were given."""
    options = {
        name: {k: v for k, v in vars(term).items() if _is_number(v)}
        for name, term in objective.active.items()
    }
    return OptionError("training.objective", options, expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
