"""Proof by trial: whether new layers do in their model what the layers in whose place they stand would do.

A factorized or rounded layer stands for a dense one: the layer that it replaces, carrying the weight that it comes
to. The model runs once with all the new layers and once with the dense ones, in training and in evaluation. Each
parent of a layer is given what the original model gave it, whatever reaches it now. Compared is what reaches a parent,
what it answers, and what it leaves in its arguments; so is the answer of the model. They agree where they differ by
no more than rounding can make them differ.

That tolerance is measured, not guessed. A product through factors is the exact product of the dense weight moved
entry by entry by at most sqrt(n) u |G_1| ... |G_d| (u the unit of rounding, n the length of the sums; Higham and
Mary, A new approach to probabilistic rounding error analysis, 2019, theorem 3.1 with a factor of 8 for its
confidence). The dense weights are moved so far, each entry up or down at random, and 8 times what this does to the
answer, in the Frobenius norm, is allowed; so a parent that amplifies is allowed more, one that does not is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compresskd.proof.passes import PASSES, RECORDING, Pass, places, sharing, undisturbed
from compresskd.proof.twins import moved
from compresskd.proof.watch import Seen, Watch
from compresskd.quant.prepare import freeze
from compresskd.tasks import Inputs, call

CONFIDENCE = 8.0
_NOTHING = ("nothing", None)  # where one model calls fewer modules
Layers = Mapping[str, nn.Module]


def differing(model: nn.Module, old: Layers, new: Layers, twins: Layers, inputs: Inputs) -> dict[str, str]:
    """Those of the layers `new` that do not do, in place, what their `twins` do; with the reason, by name.

    Args:
        model: that they belong to, with the old layers in it or the new ones.
        old: the layers as they were, by name.
        new: what stands for each.
        twins: what `carrying` makes of each, for this trial alone.
        inputs: [B, ...] a few samples.

    No model, running statistic or generator of random numbers is changed.
    """
    if not new:
        return {}
    with undisturbed():
        return _Bench(model, old, new, twins, inputs).differing(list(new))


class _Broken(Exception):
    """The model does not run; says so of the module in which it stopped."""


class _Bench:
    """A copy of the model in which each layer is the old one, the new one or its twin."""

    def __init__(self, model: nn.Module, old: Layers, new: Layers, twins: Layers, inputs: Inputs) -> None:
        self._model, old, self._new = sharing((model, dict(old), dict(new)))
        self._twins, self._inputs = twins, inputs
        self._places = {name: places(self._model, name) for name in new}
        for layer in (self._model, *self._new.values(), *twins.values()):
            freeze(layer)  # scales are those of now: a pass in training mode would move them
        above = [list(_ancestors(name)) for name in new]
        original = Watch({parent for found in above for parent in found})
        self._run(old, RECORDING, original)
        # the nearest module around each layer that is called at all (a list of modules is not), and the model
        self._parents = {next(a for a in found if a in original.given) for found in above} | {""}
        self._given = original.given
        self._seen: dict[tuple[str, str], Seen] = {}

    def _dense(self, each: Pass) -> Seen:
        return self._once("dense", each, lambda: self._twins)

    def _moved(self, each: Pass) -> Seen:
        return self._once("moved", each, lambda: {n: moved(t, self._new[n]) for n, t in self._twins.items()})

    def _once(self, what: str, each: Pass, layers: Callable[[], Layers]) -> Seen:
        key = what, each.name
        if key not in self._seen:
            self._seen[key] = self._run(layers(), each)
        return self._seen[key]

    def differing(self, names: Sequence[str]) -> dict[str, str]:
        """The layers by whose presence the model does otherwise: looked for together, then in halves."""
        reason = self._difference(names)
        if reason is None or len(names) == 1:
            return dict.fromkeys(names, reason) if reason is not None else {}
        middle = len(names) // 2
        found = self.differing(names[:middle]) | self.differing(names[middle:])
        rest = [name for name in names if name not in found]
        reason = self._difference(rest) if found else reason
        return found if reason is None else found | dict.fromkeys(rest, f"together with others it {reason}")

    def _difference(self, names: Sequence[str]) -> str | None:
        """Why the model with these layers does not do what it does with their twins; None where it does."""
        for each in PASSES if names else ():
            try:
                found = self._deviation(names, each)
            except _Broken as error:
                return f"breaks {error.args[0]} in {each.name}: {error.args[1]}"
            if found is not None:
                where, excess = found
                return f"makes {where} answer otherwise in {each.name} than the dense layer would: {excess}"
        return None

    def _deviation(self, names: Sequence[str], each: Pass) -> tuple[str, str] | None:
        """Where a pass with these layers first goes otherwise, and how."""
        seen, dense = self._run({**self._twins, **{n: self._new[n] for n in names}}, each), self._dense(each)
        for place, ((where, a), (expected, b)) in enumerate(zip_longest(seen, dense, fillvalue=_NOTHING)):
            if where != expected:
                return where, f"here, where {expected} would be running"
            excess = _excess(a, b, lambda place=place: self._moved(each)[place][1])
            if excess is not None:
                return where, excess
        return None

    def _run(self, layers: Layers, each: Pass, watch: Watch | None = None) -> Seen:
        """What is seen of the parents with these layers in place."""
        for name, found in self._places.items():
            for holder, key in found:
                holder._modules[key] = layers[name]
        if watch is not None:
            return self._watched(each, watch)
        try:
            with _forgetful():
                return self._watched(each, Watch(self._parents, self._given))
        except _Broken:  # it may take gradients on its way
            return self._watched(each, Watch(self._parents, self._given))

    def _watched(self, each: Pass, watch: Watch) -> Seen:
        try:
            with each.of(self._model), watch.over(self._model):
                call(self._model, self._inputs)
        except Exception as error:  # a model may be the user's own code, which raises what it likes
            text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise _Broken(watch.where, text) from error
        return watch.seen


def _forgetful() -> AbstractContextManager[Any]:
    """Inside, nothing is kept for a backward pass, which a trial has not: dense weights would add up to a model."""

    def refused(_: None) -> Tensor:
        raise RuntimeError("nothing was kept for a backward pass")

    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, refused)


def _excess(answers: Any, dense: Any, moved: Callable[[], Any]) -> str | None:
    """By how much the answers differ, where it is more than rounding explains; `moved` is asked only if need be."""
    (new, shape), (old, expected) = pytree.tree_flatten(answers), pytree.tree_flatten(dense)
    if shape != expected:
        return f"{shape} for {expected}"
    others: list[Any] = []
    for place, (a, b) in enumerate(zip(new, old, strict=True)):
        if not isinstance(b, Tensor):
            continue  # what is no tensor says nothing of numbers; equal structures hold as many
        if not isinstance(a, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return f"{_told(a)} for {_told(b)}"
        scale, difference = _norm(b), _distance(a, b)
        allowed = CONFIDENCE * torch.finfo(b.dtype).eps * scale if b.is_floating_point() else 0.0
        if difference <= allowed:  # so that NaN never agrees
            continue
        others = others or pytree.tree_leaves(moved())
        if not difference <= allowed + CONFIDENCE * _distance(others[place], b):
            return f"a difference of {difference / max(scale, 1e-30):.2g} relative to the answer"
    return None


def _told(value: Any) -> str:
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _distance(a: Tensor, b: Tensor) -> float:
    """|a - b|; infinities of the same sign are equal, NaN is equal to nothing."""
    quick = _length(a - b) if a.is_floating_point() else math.nan
    return quick if math.isfinite(quick) else _length(torch.where(a == b, 0.0, a.double() - b.double()))


def _norm(a: Tensor) -> float:
    """|a| without what is not finite."""
    quick = _length(a) if a.is_floating_point() else math.nan
    return quick if math.isfinite(quick) else _length(torch.where(a.isfinite(), a.double(), 0.0))


def _length(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a, dtype=torch.float64))


def _ancestors(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition(".")[0]
        yield name
