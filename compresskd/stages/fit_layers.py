"""Fit each factorized layer by itself to what the teacher's layer of the same name does, before training the whole."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskd import layers
from compresskd.data.draw import draw
from compresskd.engine.strategy import Context, State
from compresskd.layers import surgery
from compresskd.optimizer import make_optimizer
from compresskd.options import Count, checked
from compresskd.tasks import Inputs, call
from compresskd.training import LearningRate
from compresskd.training.evaluation import evaluation_mode

_NO_NAMESAKE = (
    "layer of the student has a namesake in the teacher; it takes a student that was made from the teacher "
    "(strategy=compress_then_distill)"
)


@checked
@dataclass(frozen=True)
class FitLayers:
    """Slice-wise start: minimise |layer(x) - teacher layer(x)|^2 over cached inputs x of the teacher's layer.

    Attributes:
        steps: of Adam, each layer.
        num_samples: training samples, a seeded draw, whose features are cached.
        batch_size: samples a step.
        learning_rate: of Adam.
    """

    steps: Count = 100
    num_samples: Count = 1024
    batch_size: Count = 64
    learning_rate: LearningRate = 1e-3

    @property
    def needs_teacher(self) -> bool:
        """Always: its layers are what is fitted to."""
        return True

    def check(self, state: State, example: Inputs) -> State:
        """See `engine.strategy.Checked`: layers of the student may have namesakes in the teacher."""
        names = [name for layer in layers.find(state.student) for name in layer.names]
        if state.teacher is None or not _namesakes(names, state.teacher):
            raise ValueError(f"fit_layers: no {_NO_NAMESAKE}")
        return state

    def __call__(self, state: State, context: Context) -> State:
        """Fit `state.student`'s factorized layers in place; details record each one's error before and after."""
        teacher = state.teacher
        if teacher is None:
            raise ValueError("fit_layers needs a teacher")
        names = [
            name
            for name in _namesakes(surgery.structure(state.student), teacher)
            if _is_trainable(state.student, name)
        ]
        if not names:
            raise ValueError(f"fit_layers: no factorized {_NO_NAMESAKE}")
        drawn = draw(context.data.train, self.num_samples, seed=context.stage_seed)
        inputs = [batch.inputs for batch in drawn.batches(self.batch_size)]
        errors = {}
        for name in names:
            features = _features(teacher, name, inputs)
            if features is not None:  # else the model never calls it: another layer has its weight as well
                errors[name] = self._fit(state.student.get_submodule(name), *features, context)
        context.details.update(layer_errors=errors, epochs=0)
        return state

    def _fit(self, layer: nn.Module, x: Tensor, y: Tensor, context: Context) -> dict[str, float]:
        generator = torch.Generator().manual_seed(context.seed)
        trained = [p for p in layer.parameters() if p.requires_grad]
        optimizer = make_optimizer(functools.partial(torch.optim.Adam, lr=self.learning_rate), trained)
        before = _relative_error(layer, x, y)
        best, kept = before, {k: v.clone() for k, v in layer.state_dict().items()}
        for step in range(self.steps):
            rows = torch.randint(len(x), (self.batch_size,), generator=generator).to(x.device)
            loss = F.mse_loss(layer(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == self.steps - 1 or (step + 1) % 25 == 0:
                error = _relative_error(layer, x, y)
                if error < best:
                    best, kept = error, {k: v.clone() for k, v in layer.state_dict().items()}
        layer.load_state_dict(kept)
        return {"before": before, "after": best}


def _namesakes(names: Iterable[str], teacher: nn.Module) -> list[str]:
    there = dict(teacher.named_modules())
    return [name for name in names if name in there]


def _is_trainable(model: nn.Module, name: str) -> bool:
    return any(parameter.requires_grad for parameter in model.get_submodule(name).parameters())


@torch.no_grad()
def _features(teacher: nn.Module, name: str, inputs: Sequence[Inputs]) -> tuple[Tensor, Tensor] | None:
    """What goes into and comes out of the teacher's layer, for all inputs; of sequences, position by position.

    None where the layer never runs.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    with evaluation_mode(teacher), _recording(teacher.get_submodule(name), seen):
        for batch in inputs:
            call(teacher, batch)
    if not seen:
        return None
    if any(
        y.dim() == 3 for _, y in seen
    ):  # sequences of several lengths: a layer maps each position by itself
        seen = [(x.flatten(0, 1), y.flatten(0, 1)) for x, y in seen]
    return torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])


@contextmanager
def _recording(module: nn.Module, seen: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0], output))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _relative_error(layer: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((layer(x) - y).norm() / y.norm().clamp_min(1e-30))
