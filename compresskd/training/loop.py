"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from compresskd.data.base import Data
from compresskd.distributed import active
from compresskd.distributed.gradients import Gradients
from compresskd.distributed.sharding import own_alone, sharded
from compresskd.training.dropout import dropout
from compresskd.training.epoch import non_finite, save, train_epoch, validation_due
from compresskd.training.evaluation import Scores, evaluate
from compresskd.training.history import EpochRecord, FitResult, StepProgress, better
from compresskd.training.interrupt import deferred_interrupt
from compresskd.training.loss import LossFunction
from compresskd.training.meter import Meter
from compresskd.training.plan import Plan
from compresskd.training.precision import autocast, check_compile, check_precision
from compresskd.training.recipe import Recipe
from compresskd.training.state import Best, TrainingState, initial_state, load_state, snapshot
from compresskd.tt.execution.policy import repeatable


@repeatable()
def fit(
    model: nn.Module,
    data: Data,
    loss: LossFunction,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    extra_modules: Sequence[nn.Module] = (),
    after_step: Callable[[int], None] | None = None,
    before_epoch: Callable[[int], None] | None = None,
    checkpoint: Callable[[dict[str, Any]], None] | None = None,
    resume: Mapping[str, Any] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_step: Callable[[StepProgress], None] | None = None,
) -> FitResult:
    """Train `model` in place; it ends with the weights of its best epoch on validation, or those of `recipe.keep`.

    The test split is never read.

    Args:
        data: on `device` already (`Data.to`); the model is moved there.
        loss: `(model, batch) -> LossOutput(total, terms, logits)`, called within autocast at `recipe.precision`.
            It must call the model that it is given, which may be a compiled form. Of a task whose rows are no
            samples, a fourth value gives the rows' targets.
        extra_modules: trained along and kept in checkpoints (projectors), or there to have their buffers kept
            (the state of what `loss` and `after_step` do). Their parameters are not part of the result.
        after_step: called with the number of updates done, after each one, before the weight average takes it in.
        before_epoch: called with the epoch, the model just put in training mode: the place to freeze modules. It
            is called again when an epoch is resumed in its middle, so it must not draw random numbers.
        checkpoint: called with a dict of tensors and plain values after every epoch and, within an epoch, every
            `recipe.checkpoint_seconds`. The tensors are the live ones: write them before returning.
        resume: such a dict; training goes on from there as if it had never stopped (bit for bit on the CPU).
        on_epoch: called after each epoch, before its checkpoint. After a kill between the two, the epoch comes
            again: whoever writes it down keeps only as many lines as `resume["history"]` has.
        on_step: called at most ten times a second.

    Several processes (`compresskd.distributed`) call it together, each with the same arguments, and have the same
    result: of every batch each takes its share and, by `recipe.sharding`, keeps its part of the parameters alone while
    it trains. Then `loss` is given another module than `model`, which has its hooks.

    The random numbers (dropout, order, mixup, augmentation) follow from `seed`; the generators of the caller
    are left as they were. Factorized layers run by fixed plans, at validation too, unless the caller has chosen
    others (`compresskd.tt.plans`).

    Raises:
        NonFiniteLoss: the loss is NaN or inf.
        ResumeMismatch: `resume` is of another training.
        ValueError: the device cannot do what the recipe asks.
        KeyboardInterrupt: after a checkpoint at the end of the step in which Ctrl-C came.
    """
    device = torch.device(device)
    _check(data, recipe, device)
    model.to(device)
    if recipe.epochs == 0:
        return _untrained(model, data, recipe)
    generators = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=generators),
        deferred_interrupt() as interrupt,
        _prepared(model, recipe),
        ExitStack() as stack,
    ):
        torch.manual_seed(seed)
        group, steps = active(), data.train.num_batches(recipe.batch_size)
        group.copy_first([model, *extra_modules])
        trained = stack.enter_context(sharded(model, group)) if _is_spread(recipe) else model
        state = initial_state(trained, extra_modules, recipe, steps, device, data.task)
        gradients = stack.enter_context(Gradients(own_alone(state.trained), group))
        plan = Plan(
            data=data,
            loss=loss,
            recipe=recipe,
            seed=seed,
            steps=steps,
            forward=torch.compile(trained) if recipe.compile else trained,  # type: ignore[arg-type]
            cast=autocast(recipe.precision, device),
            interrupt=interrupt,
            after_step=after_step,
            before_epoch=before_epoch,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
            on_step=on_step,
            gradients=gradients,
            group=group,
        )
        if resume is not None:
            load_state(state, resume, plan.identity)
        return _run(state, plan)


def _is_spread(recipe: Recipe) -> bool:
    return recipe.sharding is not None and active().world > 1


def _check(data: Data, recipe: Recipe, device: torch.device) -> None:
    check_precision(recipe.precision, device)
    check_compile(recipe.compile, device)
    where = data.train.device
    if where.type != device.type:
        raise ValueError(f"data: expected on device {device}, got {where}; pass data.to({str(device)!r})")


def _run(state: TrainingState, plan: Plan) -> FitResult:
    recipe = plan.recipe
    while (state.updates < plan.updates or state.since) and not _out_of_patience(state, recipe):
        state.model.train()
        state.extra.train()
        if plan.before_epoch is not None:
            plan.before_epoch(state.epoch)
        train_epoch(state, plan)
        if validation_due(state, plan):
            _validate(state, plan)
        if state.step == plan.steps:
            state.epoch, state.step = state.epoch + 1, 0
        save(state, plan)
        if plan.interrupt.pending:
            raise KeyboardInterrupt
    best = state.best
    assert best is not None  # every epoch that ends leaves one
    state.model.load_state_dict(best.weights)
    return FitResult(
        history=tuple(state.history),
        best_epoch=best.epoch,
        validation=best.values,
        seconds=sum(record.seconds for record in state.history),
        stopped_early=state.updates < plan.updates,
    )


def _validate(state: TrainingState, plan: Plan) -> None:
    """Validate, record, keep the weights if they are the recipe's so far, and stand at the next beginning."""
    started = time.perf_counter()
    with state.average.applied() if state.average else nullcontext():
        scores = evaluate(
            state.model,
            plan.data.validation,
            plan.data.task,
            batch_size=plan.recipe.evaluation_batch_size,
        )
        if not math.isfinite(scores.loss):
            raise non_finite(state, plan, validation_loss=scores.loss)
        if plan.recipe.keep == "last" or _is_best(scores, state.best):
            weights = snapshot(state.model.state_dict(), state.device)
            state.best = Best(len(state.history), scores.values, weights)
    record = _record(state, scores, time.perf_counter() - started)
    state.history.append(record)
    state.since, state.train_seconds = 0, 0.0
    state.meter = Meter(state.device, plan.data.task)
    if plan.on_epoch is not None:
        plan.on_epoch(record)


def _is_best(scores: Scores, best: Best | None) -> bool:
    if best is None:
        return True
    monitor = scores.task.monitor
    return better(monitor, scores.monitored, scores.loss, best.values[monitor.name], best.values["loss"])


def _record(state: TrainingState, scores: Scores, validation_seconds: float) -> EpochRecord:
    meter = state.meter
    return EpochRecord(
        epoch=len(state.history),
        updates=state.updates,
        train={"loss": meter.loss, **meter.metrics},
        terms=meter.terms,
        validation=scores.values,
        lr=meter.lr,
        seconds=state.train_seconds + validation_seconds,
        samples_per_second=meter.samples / max(state.train_seconds, 1e-9),
    )


def _out_of_patience(state: TrainingState, recipe: Recipe) -> bool:
    if recipe.patience is None or state.best is None:
        return False
    return len(state.history) - 1 - state.best.epoch >= recipe.patience


def _untrained(model: nn.Module, data: Data, recipe: Recipe) -> FitResult:
    started = time.perf_counter()
    scores = evaluate(model, data.validation, data.task, batch_size=recipe.evaluation_batch_size)
    return FitResult((), None, scores.values, time.perf_counter() - started, stopped_early=False)


@contextmanager
def _prepared(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Weights of convolutions in channels-last order, activations computed again in the backward pass, and dropout, as
    the recipe says, while training; afterwards weights are contiguous, as files want, and as those in parts stay."""
    channels_last = recipe.channels_last and not _is_spread(recipe)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.gradient_checkpointing:
        _checkpointing(model, True)
    try:
        with dropout(model, recipe.dropout):
            yield
    finally:
        if channels_last:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if recipe.gradient_checkpointing:
            _checkpointing(model, False)


def _checkpointing(model: Any, on: bool) -> None:
    if not can_checkpoint(model):
        raise ValueError(
            f"gradient_checkpointing: {type(model).__name__} has no gradient_checkpointing_enable"
        )
    model.gradient_checkpointing_enable(
        {"use_reentrant": False}
    ) if on else model.gradient_checkpointing_disable()


def can_checkpoint(model: nn.Module) -> bool:
    """Whether the model can compute activations again in the backward pass, by the convention of transformers."""
    return callable(getattr(model, "gradient_checkpointing_enable", None))
