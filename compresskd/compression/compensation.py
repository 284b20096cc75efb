"""Fit each layer to what the compressed layers before it give: so it makes up for their errors.

Of a layer y = W x whose inputs have become x', the best linear answer to them is W' = W E[x x'^T] E[x' x'^T]^-1, and
tr(G (W' - V) E[x' x'^T] (W' - V)^T) is what any V adds to its error. So W' takes the place of W and the moments of x'
that of the moments of x, and whatever decomposition follows, of two cores or of many, is fitted in closed form against
the answers of the dense model (for two cores this is reduced-rank regression: Izenman 1975,
doi:10.1016/0047-259X(75)90042-1; a step of SVD-LLM, Wang et al. 2024, arXiv:2403.07378, refits one of two factors so).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers, tt
from compresskd.compression.block_calls import calls_of, hidden_before, links, num_calls
from compresskd.compression.calibration import input_rows, mask_of, without_padding
from compresskd.compression.replacement import Make, carry_out
from compresskd.layers.stacks import blocks_of
from compresskd.progress import told
from compresskd.proof import sharing
from compresskd.tasks import Batch
from compresskd.training.evaluation import evaluation_mode
from compresskd.tt.decompose.metric import RIDGE

NONE, SEQUENTIAL = "none", "sequential"
COMPENSATIONS = (NONE, SEQUENTIAL)


Run = Callable[[nn.Module, int], Any]  # a part of the dense or of the compressed model, on a batch


class _Reached(Exception):
    """Ends a pass once every input that was waited for has come."""


@torch.no_grad()
def compensated(
    model: nn.Module,
    plan: Mapping[str, Make],
    wanted: Sequence[str],
    batches: Sequence[Batch],
    *,
    damping: float,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Make]:
    """The plan, with the layers that it makes of `wanted` fitted one after the other, in the order of their calls.

    Block by block where the model has stacks of blocks that run once: hidden states are kept for one block of the
    model and of its compressed copy. Layers outside of them are made first, as planned. A model without such stacks
    is run from its beginning for each layer.

    Args:
        plan: each `Make` takes `input_covariance` as well.
        wanted: names in the plan, of matrices that have one use.
        batches: calibration samples.
        damping: share of the mean variance of a layer's inputs that is added to their moments, and by which W' is held
            to W.
        note: told how far it is, now and then.
    """
    walk = _Walk(model, sharing(model), plan, batches, damping)
    with evaluation_mode(model), evaluation_mode(walk.changed):
        for _ in told(walk.fitted(wanted), len(wanted), "compensation, layers", note):
            pass
    return {**plan, **{name: functools.partial(_made, made=made) for name, made in walk.made.items()}}


def _made(_: nn.Module, *, made: nn.Module) -> nn.Module:
    return made


@dataclass(frozen=True)
class _Walk:
    """The dense model and its compressed copy side by side, and the layers that were made so far."""

    dense: nn.Module
    changed: nn.Module
    plan: Mapping[str, Make]
    batches: Sequence[Batch]
    damping: float
    made: dict[str, nn.Module] = field(default_factory=dict)

    def fitted(self, wanted: Sequence[str]) -> Iterator[str]:
        """Make the layers in order; the name of each that is done, or that never runs."""
        stacks = [stack for stack in blocks_of(self.dense) if self._runs_once(stack)]
        blocks = list(chain(*stacks))
        inside = {block: [name for name in wanted if name.startswith(f"{block}.")] for block in blocks}
        within = set(chain(*inside.values()))
        if not within:
            yield from self._part(wanted, lambda model, k: self.batches[k].call(model))
            return
        carry_out(self.changed, {name: make for name, make in self.plan.items() if name not in within})
        for stack in stacks:
            yield from self._along(stack, inside)

    def _runs_once(self, stack: Sequence[str]) -> bool:
        return set(num_calls(self.dense, stack, self.batches[0].inputs).values()) == {1}

    def _along(self, stack: Sequence[str], inside: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """Make the layers of a stack's blocks, moving the hidden states of both models along."""
        models = (self.dense, self.changed)
        # what stands around the blocks of a decoder comes from the encoder of the same model
        calls = [[calls_of(self.dense, stack, b.inputs) for b in self.batches]]
        calls.append(
            [calls_of(self.changed, stack, b.inputs) for b in self.batches] if self.made else calls[0]
        )
        linked = links(self.dense, stack, self.batches[0].inputs)
        hidden: list[list[Tensor]] = []
        for name in stack:
            if name not in linked:
                hidden = [[hidden_before(model, name, b.inputs) for b in self.batches] for model in models]

            def run(model: nn.Module, k: int, *, name: str = name, hidden: Any = hidden) -> Tensor:
                side = models.index(model)
                return calls[side][k][name].run(model.get_submodule(name), hidden[side][k])

            yield from self._part(inside[name], run)
            hidden = [[run(model, k) for k in range(len(self.batches))] for model in models]

    def _part(self, names: Sequence[str], run: Run) -> Iterator[str]:
        """Make these layers of what `run` runs; those that are given one tensor are fitted together."""
        counts, groups = self._order(names, run)
        yield from (name for name in names if name not in counts)
        for group in groups:
            moments = self._moments(group[0], run, counts[group[0]])
            for name in group:
                self._fit(name, *moments)
                yield name

    def _order(self, names: Sequence[str], run: Run) -> tuple[dict[str, int], list[list[str]]]:
        """How often each layer is called, and the layers in the order of their first calls, by their input."""
        counts: dict[str, int] = {}
        groups: list[list[str]] = []
        last: Tensor | None = None

        def note(name: str, x: Tensor) -> None:
            nonlocal last
            counts[name] = counts.get(name, 0) + 1
            if counts[name] == 1 and x is last:
                groups[-1].append(name)
            elif counts[name] == 1:
                groups.append([name])
            last = x

        with _watching({name: self.dense.get_submodule(name) for name in names}, note):
            run(self.dense, 0)
        return counts, groups if set(counts.values()) == {1} else [[name] for name in counts]

    def _moments(self, name: str, run: Run, count: int) -> tuple[Tensor, Tensor]:
        """Means of x' x'^T and of x x'^T [N, N] in float64, x the inputs of the layer in the dense model."""
        layer = self.dense.get_submodule(name)
        ours, crossed, num_rows = torch.zeros(()), torch.zeros(()), 0
        for k, batch in enumerate(self.batches):
            mask = mask_of(batch)
            pairs = zip(
                *(self._inputs(m, name, run, k, count) for m in (self.dense, self.changed)), strict=True
            )
            for pair in pairs:
                x, y = (
                    input_rows(layer, without_padding(each, mask), torch.Generator().manual_seed(k))
                    for each in pair
                )
                ours, crossed, num_rows = (
                    ours + (y.T @ y).double(),
                    crossed + (x.T @ y).double(),
                    num_rows + len(x),
                )
        return ours / num_rows, crossed / num_rows

    def _inputs(self, model: nn.Module, name: str, run: Run, k: int, count: int) -> list[Tensor]:
        """What a layer is given in its calls."""
        seen: list[Tensor] = []

        def note(_: str, x: Tensor) -> None:
            seen.append(x)
            if len(seen) == count:
                raise _Reached

        with _watching({name: model.get_submodule(name)}, note), suppress(_Reached):
            run(model, k)
        return seen

    def _fit(self, name: str, ours: Tensor, crossed: Tensor) -> None:
        """Make the layer of the weight that answers its inputs best; where that is no smaller it stays as it is."""
        layer: Any = copy.deepcopy(layers.plain(self.dense.get_submodule(name)))
        weight = layer.weight.detach()
        more = max(self.damping, RIDGE) * ours.diagonal().mean() * torch.eye(len(ours)).to(ours)
        answering = torch.linalg.solve(ours + more, weight.flatten(1).double() @ (crossed + more), left=False)
        layer.weight = nn.Parameter(answering.to(weight.dtype).reshape(weight.shape))
        made = self.plan[name](layer, input_covariance=ours + more)
        if not isinstance(made, tt.Skipped):
            self.made[name] = made
            carry_out(self.changed, {name: functools.partial(_made, made=made)})


def _watching(watched: Mapping[str, nn.Module], note: Callable[[str, Tensor], None]) -> ExitStack:
    """Inside, `note` is told what each of these layers is given."""
    stack = ExitStack()
    for name, layer in watched.items():

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str = name) -> None:
            note(name, next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))

        stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
    return stack
