"""The steps of one epoch."""

import math
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from compresskd.data.share import Share
from compresskd.distributed import of_batch, spread
from compresskd.distributed.batch_norm import synchronized
from compresskd.distributed.sharding import is_sharded, whole
from compresskd.tasks import Batch
from compresskd.training.history import StepProgress
from compresskd.training.loss import LossOutput, NonFiniteLoss, likely_cause
from compresskd.training.mixup import mixing_weight, mixup
from compresskd.training.plan import Plan
from compresskd.training.state import TrainingState, save_state

SECONDS_PER_REPORT = 0.1


def validation_due(state: TrainingState, plan: Plan) -> bool:
    """Whether training has come to where it validates."""
    every = plan.recipe.validate_every
    at_its_place = state.step == plan.steps if every is None else state.since >= every
    return at_its_place or state.updates >= plan.updates


def train_epoch(state: TrainingState, plan: Plan) -> None:
    """Go from `state.step` to the end of the epoch, or to where validation is due; between two updates the state is
    whole and may be saved.

    Raises NonFiniteLoss, and KeyboardInterrupt after a checkpoint.
    """
    meter, recipe = state.meter, plan.recipe
    if validation_due(state, plan):  # a checkpoint was written just before it
        return
    samples_before = meter.samples
    started = last = reported = saved = time.perf_counter()
    for group in _groups(_batches(state, plan), recipe.gradient_accumulation):
        _learn(group, state, plan)
        state.step += len(group)
        if meter.first_bad:
            raise non_finite(state, plan)

        now = time.perf_counter()
        state.train_seconds += now - last
        last = now
        if plan.on_step is not None and now - reported >= SECONDS_PER_REPORT:
            plan.on_step(_progress(state, plan, (meter.samples - samples_before) / (now - started)))
            reported = last = time.perf_counter()
        if _is_due(state, plan, now - saved):
            save(state, plan)
            saved = last = time.perf_counter()
        if plan.interrupt.pending:
            raise KeyboardInterrupt
        if validation_due(state, plan):
            break
    fetch(state, plan)
    state.train_seconds += time.perf_counter() - last


def save(state: TrainingState, plan: Plan) -> None:
    """Hand the state to whoever keeps it."""
    fetch(state, plan)
    if plan.checkpoint is not None:
        saved = save_state(state, plan.identity)
        plan.checkpoint(whole(saved, plan.group) if is_sharded(state.model) else saved)


def _is_due(state: TrainingState, plan: Plan, seconds: float) -> bool:
    """Whether a checkpoint is to be written; of a model in parts by all processes at once, as the first one says."""
    due = plan.interrupt.pending or seconds >= plan.recipe.checkpoint_seconds
    return plan.group.first(lambda: due) if is_sharded(state.model) else due


def fetch(state: TrainingState, plan: Plan) -> None:
    """Bring the values of all steps over from the device, so that no diverged model is ever saved."""
    state.meter.fetch()
    if state.meter.first_bad:
        raise non_finite(state, plan)


def non_finite(state: TrainingState, plan: Plan, validation_loss: float = math.nan) -> NonFiniteLoss:
    """Say where the loss stopped being a number: at a step if the meter knows one, else on validation."""
    step, lr, values = state.meter.first_bad or (None, state.meter.lr, {"validation_loss": validation_loss})
    cause = likely_cause(
        first_step=state.epoch == 0 and step == 0,
        fp16=plan.recipe.precision == "fp16",
        clipped=plan.recipe.gradient_clip is not None,
    )
    return NonFiniteLoss(state.epoch, step, lr, values, cause)


def _batches(state: TrainingState, plan: Plan) -> Iterator[Batch]:
    """What this process takes of the batches that are left of the epoch, as the model gets it.

    Samples that are mixed are mixed with those of the whole batch.
    """
    recipe, train, share = plan.recipe, plan.data.train, Share(plan.group.rank, plan.group.world)
    if recipe.mixup is None and share.world > 1:
        batches = train.shared(share, recipe.batch_size, epoch=state.epoch, seed=plan.seed, start=state.step)
    else:
        batches = train.batches(recipe.batch_size, epoch=state.epoch, seed=plan.seed, start=state.step)
    prepared = _prepared(batches, state, plan)
    return map(share.of, prepared) if recipe.mixup is not None else prepared


def _prepared(batches: Iterable[Batch], state: TrainingState, plan: Plan) -> Iterator[Batch]:
    """Batches in the memory format of the model, and mixed where the recipe says so."""
    recipe = plan.recipe
    for batch in batches:
        prepared = batch
        if recipe.channels_last and isinstance(batch.inputs, Tensor) and batch.inputs.ndim == 4:
            inputs = batch.inputs.contiguous(memory_format=torch.channels_last)
            prepared = replace(batch, inputs=inputs)
        if recipe.mixup is not None:
            weight = mixing_weight(recipe.mixup, seed=plan.seed, epoch=state.epoch, step=state.step)
            prepared = mixup(prepared, weight, plan.data.num_classes)
        yield prepared


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Consecutive batches, `size` to an update; at the end of an epoch there may be fewer."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _learn(group: Sequence[Batch], state: TrainingState, plan: Plan) -> None:
    """One update by the gradients of all batches of a group: of the mean over their rows, in all processes."""
    lr = state.optimizer.param_groups[0]["lr"]
    _draw_apart(state, plan)
    seen = []
    for number, (batch, weight) in enumerate(zip(group, _weights(group, plan), strict=True), 1):
        with spread(len(batch), batch.num_together), synchronized(state.model, of_batch()):
            with plan.cast:
                output = LossOutput(*plan.loss(plan.forward, batch))
            total = output.total if weight == 1 else output.total * weight
            with plan.gradients.last() if number == len(group) else nullcontext():
                (total if state.scaler is None else state.scaler.scale(total)).backward()
        if len(group) > 1:  # nothing keeps the graph of one batch while the next is computed
            output = output._replace(total=output.total.detach(), logits=output.logits.detach())
        if plan.group.world == 1:
            state.meter.add(output, batch, lr)
        else:
            seen.append((state.meter.part_of_values(output, batch, _copies(batch, plan)), list(output.terms)))
    if plan.group.world > 1:
        _add_up(group, seen, lr, state, plan)
    _update(state, plan)


def _add_up(
    group: Sequence[Batch],
    seen: Sequence[tuple[Tensor, list[str]]],
    lr: float,
    state: TrainingState,
    plan: Plan,
) -> None:
    """Make gradients, and what is told of the batches, those of all processes."""
    own = [values for values, _ in seen]
    of_all = plan.gradients.add_up(torch.cat(own)).split([len(values) for values in own])
    for batch, values, (_, names) in zip(group, of_all, seen, strict=True):
        state.meter.take(values[:-1], names, round(float(values[-1])), batch.num_together, lr)


def _copies(batch: Batch, plan: Plan) -> int:
    """How many processes compute the same of a batch: all where it has too few samples to be shared, else one."""
    return plan.group.world if batch.share_of is None else 1


def _weights(group: Sequence[Batch], plan: Plan) -> list[float]:
    """How much this process's part of each batch counts in the gradient, by the rows of the whole."""
    copies = [_copies(batch, plan) for batch in group]
    if len(group) == 1:
        return [1 / copies[0]]
    rows = [plan.data.task.num_rows(batch) / n for batch, n in zip(group, copies, strict=True)]
    whole = plan.group.sum(torch.tensor(rows, dtype=torch.float64)).tolist() if plan.group.world > 1 else rows
    return [count / max(1, sum(whole)) / n for count, n in zip(whole, copies, strict=True)]


def _draw_apart(state: TrainingState, plan: Plan) -> None:
    """Let dropout draw other numbers in each process: the first goes on as if it were alone, the others begin anew at
    each update, so that there is nothing of theirs to keep for a resumed training."""
    if not plan.group.leads:
        torch.manual_seed(zlib.crc32(f"{plan.seed}/{plan.group.rank}/{state.updates}".encode()))


def _update(state: TrainingState, plan: Plan) -> None:
    """One optimizer step, and what follows it."""
    optimizer, scaler, clip = state.optimizer, state.scaler, plan.recipe.gradient_clip
    if clip is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    state.updates += 1
    state.since += 1
    if plan.after_step is not None:
        plan.after_step(state.updates)
    if state.average is not None:
        state.average.update()
    _advance_schedule(state)


def _advance_schedule(state: TrainingState) -> None:
    if state.scaler is None:
        state.scheduler.step()
        return
    with warnings.catch_warnings():
        # The first fp16 steps are skipped until the loss scale fits; torch takes that for a wrong order of calls.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        state.scheduler.step()


def _progress(state: TrainingState, plan: Plan, samples_per_second: float) -> StepProgress:
    fetch(state, plan)
    left = (plan.updates - state.updates) * plan.recipe.gradient_accumulation
    return StepProgress(
        epoch=state.epoch,
        epochs=-(-plan.updates // plan.recipe.updates_per_epoch(plan.steps)),
        step=state.step,
        steps=min(plan.steps, state.step + left),
        loss=state.meter.loss,
        metrics=state.meter.metrics,
        samples_per_second=samples_per_second,
    )
