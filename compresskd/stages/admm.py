"""Training that pulls dense weights towards low tensor-train rank before they are factorized.

ADMM splitting as in Yin et al. 2021, "Towards Efficient Tensor Decomposition-Based DNN Model Compression with
Optimization Framework" (arXiv:2107.12422), eqs. 8 to 12: minimise loss(W) + rho/2 |W - Z + U|^2 by gradient steps
on W, Z <- TT-SVD_rank(W + U), U <- U + W - Z.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd import layers, tt
from compresskd.compression.compression import Compression
from compresskd.compression.replacement import Make
from compresskd.engine.strategy import Context, State
from compresskd.kd.objective import Objective
from compresskd.options import Count, Whole, checked
from compresskd.stages.fit import Reducing, Which, teachers_of
from compresskd.stages.train_student import data_for, train_student


class _Splitting(nn.Module):
    """Z and U of every layer as buffers, so that a checkpoint keeps them."""

    def __init__(self, layers: dict[str, Any], plan: Mapping[str, Make], rho: float):
        super().__init__()
        self._layers: dict[str, Any] = layers  # a plain dict: the student's modules are not ours to save
        self._plan, self._rho = plan, rho
        for i, (name, layer) in enumerate(layers.items()):
            weight = layer.weight.detach()
            self.register_buffer(f"z{i}", self._project(name, layer, weight))
            self.register_buffer(f"u{i}", torch.zeros_like(weight))

    def penalty(self) -> Tensor:
        """rho/2 times the summed squared distances |W - Z + U|^2, a scalar."""
        total = torch.zeros(())
        for i, layer in enumerate(self._layers.values()):
            gap = layer.weight - self.get_buffer(f"z{i}") + self.get_buffer(f"u{i}")
            total = total.to(gap.device) + gap.square().sum()
        return 0.5 * self._rho * total

    @torch.no_grad()
    def update(self) -> None:
        """Z <- TT-SVD(W + U); U <- U + W - Z."""
        for i, (name, layer) in enumerate(self._layers.items()):
            z, u = self.get_buffer(f"z{i}"), self.get_buffer(f"u{i}")
            weight = layer.weight.detach()
            z.copy_(self._project(name, layer, weight + u))
            u.add_(weight - z)

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """|W - TT-SVD(W)| / |W| by layer: what factorizing would lose now."""
        found = {}
        for name, layer in self._layers.items():
            weight = layer.weight.detach()
            gap = weight - self._project(name, layer, weight)
            found[name] = float(gap.norm() / weight.norm().clamp_min(1e-30))
        return found

    @torch.no_grad()
    def _project(self, name: str, layer: Any, weight: Tensor) -> Tensor:
        holder = copy.deepcopy(layer)
        holder.weight = nn.Parameter(weight.clone(), requires_grad=False)
        factorized: Any = self._plan[name](holder)
        if isinstance(factorized, tt.Skipped):
            return weight.clone()
        held = layers.held_by(layer, factorized.to_dense())
        assert held is not None  # only such layers are pulled
        return held.reshape(weight.shape)


@checked
@dataclass(frozen=True)
class Admm(Reducing):
    """Train the dense student while its weights are pulled towards tensor trains of a rank.

    Attributes:
        compression: which layers, and the size that they are pulled to; they are not factorized here.
        rho: weight of the pull.
        updates_per_epoch: how often Z and U are renewed.
        objective, epochs, teacher: as in `Fit`.
    """

    objective: Objective
    epochs: Whole
    compression: Compression
    rho: Annotated[float, Gt(0), Le(1e6)] = 1e-3
    updates_per_epoch: Count = 1
    teacher: Which = "original"

    def __call__(self, state: State, context: Context) -> State:
        """Train `state.student` in place; details record each layer's distance to low rank, before and after."""
        student = state.student
        plan = self.compression.plan(student, context)
        pulled = {
            n: student.get_submodule(n) for n in plan if self._gets_smaller(student.get_submodule(n), plan[n])
        }
        if not pulled:
            raise ValueError("admm: no layer would get smaller at this rank; write a smaller rank=")
        splitting = _Splitting(pulled, plan, self.rho).to(context.device)
        before = splitting.distances()
        steps = data_for(self.objective, context.data).train.num_batches(context.recipe.batch_size)
        every = max(1, steps // self.updates_per_epoch)

        def after_step(done: int) -> None:
            if done % every == 0:
                splitting.update()

        train_student(
            student,
            teachers_of(self.teacher, state, student),
            self.objective,
            context,
            epochs=self.epochs,
            penalty=splitting.penalty,
            after_step=after_step,
            extra_modules=[splitting],
        )
        context.details["low_rank_distance"] = {"before": before, "after": splitting.distances()}
        return state

    def _gets_smaller(self, layer: nn.Module, make: Make) -> bool:
        computed = layers.computes_weight(layer)
        pulled = layers.is_matrix(layer) and not computed and not parametrize.is_parametrized(layer, "weight")
        return pulled and not isinstance(make(layer), tt.Skipped)
