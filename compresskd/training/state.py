"""Everything that changes while a model is trained: what a checkpoint holds."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compresskd.distributed.sharding import is_sharded, optimizer_parts_of, parts_of
from compresskd.optimizer import make_optimizer
from compresskd.tasks import Task
from compresskd.training.history import EpochRecord
from compresskd.training.meter import Meter
from compresskd.training.parameters import Average, parameter_groups
from compresskd.training.precision import grad_scaler
from compresskd.training.recipe import Recipe

VERSION = 1


class ResumeMismatch(ValueError):
    """A checkpoint belongs to another training than the one that is to go on."""


@dataclass(frozen=True)
class Best:
    """The best epoch so far, with the model's state at its end (averaged where there is an average)."""

    epoch: int
    values: Mapping[str, float]  # of validation: `loss` and every metric
    weights: dict[str, Any]


@dataclass
class TrainingState:
    """The moving parts and where they stand; `step` is the number of batches done of `epoch`."""

    model: nn.Module
    extra: nn.ModuleList
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler | None
    average: Average | None
    meter: Meter
    device: torch.device
    epoch: int = 0
    step: int = 0
    updates: int = 0  # of the optimizer, in all
    since: int = 0  # updates since the last validation
    train_seconds: float = 0.0  # since the last validation
    history: list[EpochRecord] = field(default_factory=list)
    best: Best | None = None

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer changes, in the order of the modules."""
        ours = {p for group in self.optimizer.param_groups for p in group["params"]}
        modules = (self.model, self.extra)
        return [p for p in dict.fromkeys(p for m in modules for p in m.parameters()) if p in ours]


def initial_state(
    model: nn.Module,
    extra_modules: Sequence[nn.Module],
    recipe: Recipe,
    steps_per_epoch: int,
    device: torch.device,
    task: Task,
) -> TrainingState:
    """Build optimizer, schedule, loss scaling and weight average for a training from its beginning."""
    extra = nn.ModuleList(extra_modules).to(device)
    optimizer = make_optimizer(recipe.optimizer, parameter_groups([model, extra]))
    if is_sharded(model):
        for group in optimizer.param_groups:
            group.update({"fused": False} if "fused" in group else {})  # such kernels know no parts
    return TrainingState(
        model=model,
        extra=extra,
        optimizer=optimizer,
        scheduler=recipe.scheduler(
            optimizer,
            total_steps=recipe.num_updates(steps_per_epoch),
            steps_per_epoch=recipe.updates_per_epoch(steps_per_epoch),
        ),
        scaler=grad_scaler(recipe.precision, device),
        average=Average(model.parameters(), recipe.ema) if recipe.ema is not None else None,
        meter=Meter(device, task),
        device=device,
    )


def save_state(state: TrainingState, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors and JSON-able values. The tensors are the live ones: write them before training goes on."""
    return {
        "version": VERSION,
        "identity": dict(identity),
        "epoch": state.epoch,
        "step": state.step,
        "updates": state.updates,
        "since": state.since,
        "train_seconds": state.train_seconds,
        "model": state.model.state_dict(),
        "extra": state.extra.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "average": state.average.state_dict() if state.average else None,
        "best": {**vars(state.best), "values": dict(state.best.values)} if state.best else None,
        "history": [record.row() for record in state.history],
        "meter": state.meter.state_dict(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(state.device) if state.device.type == "cuda" else None,
        },
    }


def load_state(state: TrainingState, saved: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Put `state`, fresh from `initial_state`, where `saved` was taken. `saved` itself is left as it is.

    Raises ResumeMismatch where it is of another training (identity), another model or another optimizer.
    """
    _check_identity(saved, identity)
    try:
        own = state.model.state_dict()
        state.model.load_state_dict(parts_of(saved["model"], own))
        state.extra.load_state_dict(saved["extra"])
        state.optimizer.load_state_dict(
            optimizer_parts_of(copy.deepcopy(saved["optimizer"]), state.optimizer)
        )
        if state.average:
            state.average.load_state_dict(saved["average"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ResumeMismatch(
            "resume: the checkpoint does not fit this model and optimizer; "
            f"resume with the configuration and the version that it was written with. {error}"
        ) from error
    state.scheduler.load_state_dict(copy.deepcopy(saved["scheduler"]))
    if state.scaler:
        state.scaler.load_state_dict(saved["scaler"])
    # version 0.1 made one update of each batch and validated after each epoch
    done = saved["epoch"] * identity["steps_per_epoch"] + saved["step"]
    state.updates, state.since = saved.get("updates", done), saved.get("since", saved["step"])
    state.epoch, state.step, state.train_seconds = saved["epoch"], saved["step"], saved["train_seconds"]
    state.history = [EpochRecord.from_row(record) for record in saved["history"]]
    state.best = _best(saved["best"], state.device, own) if saved["best"] else None
    state.meter.load_state_dict(saved["meter"])
    torch.set_rng_state(saved["random"]["cpu"].cpu())
    if state.device.type == "cuda" and saved["random"]["cuda"] is not None:
        torch.cuda.set_rng_state(saved["random"]["cuda"].cpu(), state.device)


def _best(saved: Mapping[str, Any], device: torch.device, own: Mapping[str, Any]) -> Best:
    # version 0.1 knew classification alone
    values = saved["values"] if "values" in saved else {k: saved[k] for k in ("accuracy", "loss")}
    return Best(saved["epoch"], values, snapshot(parts_of(saved["weights"], own), device))


def snapshot(weights: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Copy a state dict; entries that are no tensors (extra state of modules) are copied too."""
    return {
        name: value.detach().to(device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in weights.items()
    }


def _check_identity(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if saved.get("version") != VERSION:
        raise ResumeMismatch(
            f"resume: checkpoint layout {saved.get('version')!r}; this release reads {VERSION}"
        )
    theirs = saved["identity"]
    wrong = [
        f"{key}: {theirs.get(key)!r} then, {value!r} now"
        for key, value in identity.items()
        if theirs.get(key) != value
    ]
    if wrong:
        raise ResumeMismatch(f"resume: the checkpoint is of another training ({'; '.join(wrong)})")
