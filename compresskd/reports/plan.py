"""What a command would do: layers, parameters, bytes, memory and time, before anything is trained."""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers, measure
from compresskd.compression.compression import Compression
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.replacement import carry_out
from compresskd.data.base import Split
from compresskd.engine.experiment import Experiment
from compresskd.layers import surgery
from compresskd.quant.targets import find_targets
from compresskd.stages import Quantization
from compresskd.stages.train_student import data_for, recipe_with
from compresskd.tasks import Batch, tensors_of
from compresskd.training.precision import autocast

_FLOAT = 4  # bytes
_MOMENTS = 2  # of Adam and its like; SGD has one at most, so that this errs on the safe side


@dataclass(frozen=True)
class Layer:
    """One weight of a model: its names, what kind of layer it is, its shape, and why it is left as it is."""

    name: str
    kind: str
    shape: tuple[int, ...]
    num_parameters: int
    obstacle: str | None


@dataclass(frozen=True)
class Step:
    """One stage: how it leaves the student, and what its training takes.

    Attributes:
        num_parameters: of the student after it; None where that is known only when it has run.
        num_bytes: of its file, without entropy coding; None likewise.
        updates: of the optimizer. seconds: of them, estimated from one update. memory: bytes at their peak, estimated.
    """

    name: str
    kind: str
    num_parameters: int | None
    num_bytes: int | None
    updates: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    strategy: str
    data: Mapping[str, Any]
    teacher: str | None
    student: str
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = field(default=())


def plan(experiment: Experiment) -> Plan:
    """Look at the models of an experiment as they are built, and time one update; nothing is trained or written."""
    data = experiment.data
    student = experiment.student()
    teacher = None
    if experiment.teacher is not None:
        teacher = experiment.teacher.build()
    batch = _typical_batch(data.train, min(experiment.recipe.batch_size, len(data.train)))
    compressed = teacher if _compresses_teacher(experiment) and teacher is not None else student
    return Plan(
        experiment.strategy.name,
        {"name": data.name, "task": data.task.name, "train": len(data.train), "validation": len(data.validation),
         "test": len(data.test)},
        None if teacher is None else _described(teacher),
        _described(compressed),
        tuple(_layers(compressed)),
        tuple(_steps(experiment, student, teacher, batch)),
        tuple(notice.text for notice in data.notices),
    )  # fmt: skip


def _typical_batch(split: Split, batch_size: int) -> Batch:
    """Of some batches the one of median size: texts of like length make a batch, so that the first may be long."""
    few = list(itertools.islice(split.batches(batch_size, epoch=0, seed=0), 15))
    return sorted(few, key=lambda batch: next(tensors_of(batch.inputs)).numel())[len(few) // 2]


def _compresses_teacher(experiment: Experiment) -> bool:
    return any(getattr(stage, "source", "") == "teacher" for stage in experiment.strategy.stages.values())


def _described(model: nn.Module) -> str:
    return f"{type(model).__name__}, {measure.num_parameters(model):,} parameters"


def _layers(model: nn.Module) -> Iterator[Layer]:
    for layer in layers.find(model):
        weights = layers.weights_of(layer.module)
        shape = tuple(weights[0].shape) if len(weights) == 1 else ()
        number = sum(weight.numel() for weight in weights)
        kind = layers.type_of(layer.module).__name__
        yield Layer(", ".join(layer.members), kind, shape, number, layer.obstacle)


def _steps(
    experiment: Experiment, student: nn.Module, teacher: nn.Module | None, batch: Batch
) -> Iterator[Step]:
    bits: int | None = None
    known = True
    model = student
    for name, stage in experiment.strategy.stages.items():
        compression, quantization = getattr(stage, "compression", None), getattr(stage, "quantization", None)
        if getattr(stage, "source", "") == "teacher" and teacher is not None:
            model = copy.deepcopy(teacher)
        if isinstance(compression, Compression):
            changed = _compressed(model, compression)
            model, known = (model, False) if changed is None else (changed, known)
        if isinstance(quantization, Quantization):
            bits = quantization.bits
        updates = _updates(experiment, stage)
        # the first update warms up what the second is timed with
        timed = [_one_update(experiment, model, teacher, batch) for _ in range(2)] if updates else [(0.0, 0)]
        seconds, memory = min(timed)
        number = measure.num_parameters(model) if known else None
        yield Step(
            name,
            type(stage).__name__,
            number,
            _bytes(model, bits) if known else None,
            updates,
            updates * seconds,
            memory,
        )


def _updates(experiment: Experiment, stage: Any) -> int:
    epochs = getattr(getattr(stage, "training", stage), "epochs", 0)
    if not epochs:
        return 0
    recipe = recipe_with(experiment.recipe, epochs, None)
    objective = getattr(getattr(stage, "training", stage), "objective", None)
    data = experiment.data if objective is None else data_for(objective, experiment.data)
    return recipe.num_updates(data.train.num_batches(recipe.batch_size))


def _compressed(model: nn.Module, compression: Compression) -> nn.Module | None:
    """The model with layers of the ranks that it will have; None where these follow from trained weights."""
    if compression.tolerance is not None or compression.energy is not None or compression.is_shared:
        return None
    changed = copy.deepcopy(model)
    names = [layer.name for layer in layers.find(changed) if layer.obstacle is None]
    chosen = {
        name: changed.get_submodule(name)
        for name in names
        if surgery.matches(name, compression.include, compression.exclude)
    }
    method = Method(
        compression.method, compression.num_cores, {}, compression.modes or {}, compression.keep_larger
    )
    carry_out(changed, plan_layers(chosen, compression, method, changed, None))
    return changed


def _bytes(model: nn.Module, bits: int | None) -> int:
    """Of the parameters alone: rounded ones at their bits, what else there is at half precision beside them."""
    every = {id(p): p.numel() for p in model.parameters()}
    if bits is None:
        return _FLOAT * sum(every.values())
    rounded = {
        id(p) for target in find_targets(model) for p in [_parameter(model, target.name)] if p is not None
    }
    few = sum(number for key, number in every.items() if key in rounded)
    return -(-few * bits // 8) + 2 * (sum(every.values()) - few)


def _parameter(model: nn.Module, name: str) -> Tensor | None:
    owner, _, key = name.rpartition(".")
    return getattr(model.get_submodule(owner), key, None)


def _one_update(
    experiment: Experiment, model: nn.Module, teacher: nn.Module | None, batch: Batch
) -> tuple[float, int]:
    """Seconds of one update, and bytes at its peak: weights, gradients, moments, kept activations, the teacher."""
    task, recipe = experiment.data.task, experiment.recipe
    model = copy.deepcopy(model).train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    started = time.perf_counter()
    with torch.random.fork_rng(), autocast(recipe.precision, torch.device("cpu")):
        if teacher is not None:
            with torch.no_grad():
                batch.call(teacher.eval())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            rows, targets = task.rows(batch.call(model), batch)
            loss = task.label_loss(rows.logits.float(), targets)
    with contextlib.suppress(RuntimeError):  # a model that is frozen has no gradient
        loss.backward()
    seconds = (time.perf_counter() - started) * recipe.gradient_accumulation
    weights = {p.untyped_storage().data_ptr(): p.numel() * _FLOAT for p in model.parameters()}
    trained = sum(p.numel() * _FLOAT for p in model.parameters() if p.requires_grad)
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    of_teacher = 0 if teacher is None else sum(p.numel() * _FLOAT for p in teacher.parameters())
    return seconds, sum(weights.values()) + (1 + _MOMENTS) * trained + activations + of_teacher


def show(found: Plan) -> str:
    """The plan as text."""
    data = found.data
    lines = [
        f"{found.strategy} on {data['name']} (task {data['task']}): {data['train']:,} samples for training, "
        f"{data['validation']:,} for validation, {data['test']:,} for test",
        *(f"note: {note}" for note in found.notes),
        f"teacher: {found.teacher or 'none'}",
        f"to be compressed: {found.student}",
        "",
        f"{'layer':<44} {'kind':<12} {'shape':<18} {'parameters':>12}",
    ]
    for layer in found.layers:
        shape = "x".join(map(str, layer.shape))
        why = f"  stays: {layer.obstacle}" if layer.obstacle else ""
        lines.append(f"{layer.name:<44} {layer.kind:<12} {shape:<18} {layer.num_parameters:>12,}{why}")
    lines += [
        "",
        f"{'stage':<14} {'parameters':>12} {'bytes':>14} {'updates':>9} {'time':>10} {'memory':>10}",
    ]
    for step in found.steps:
        number = "as trained" if step.num_parameters is None else f"{step.num_parameters:,}"
        size = "as trained" if step.num_bytes is None else f"{step.num_bytes:,}"
        lines.append(
            f"{step.name:<14} {number:>12} {size:>14} {step.updates:>9,} {_duration(step.seconds):>10} "
            f"{step.memory / 2**20:>7,.0f} MB"
        )
    lines.append(
        "sizes are those of the modes that the search picks for untrained weights; trained ones may differ"
    )
    total = sum(step.seconds for step in found.steps)
    lines.append(
        f"about {_duration(total)} of training on this machine, without evaluation and the teacher's own"
    )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
