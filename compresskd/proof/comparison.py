"""Proof by trial: whether new layers do in their model what the layers in whose place they stand would do.

A factorized or rounded layer stands for a dense one: the layer that it replaces, carrying the weight that it comes
to. Both are run in place, in their parent and in the whole model, in evaluation and in training, on what the parent
is given by the original model. They agree where answers differ by no more than rounding can make them differ.

That tolerance is measured, not guessed. A product through factors is the exact product of the dense weight moved
entry by entry by at most sqrt(n) u |G_1| ... |G_d| (u the unit of rounding, n the length of the sums; Higham and
Mary, A new approach to probabilistic rounding error analysis, 2019, theorem 3.1 with a factor of 8 for its
confidence). The dense weights are moved so far, each entry up or down at random, and 8 times what this does to the
answer, in the Frobenius norm, is allowed; so a parent that amplifies is allowed more, one that does not is not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compresskd.proof.passes import PASSES, Call, Calls, Pass, places, recorded, seeded, undisturbed
from compresskd.proof.twins import moved
from compresskd.quant.prepare import freeze

CONFIDENCE = 8.0
Layers = Mapping[str, nn.Module]


def differing(
    original: nn.Module, new: Layers, twins: Layers, inputs: Tensor, *, base: nn.Module | None = None
) -> dict[str, str]:
    """Those of the layers `new` that do not do, in place, what their `twins` do; with the reason, by name.

    Args:
        original: the model as it was, whose activations are what parents are run on.
        new: the layers by name.
        twins: what `carrying` makes of each.
        inputs: [B, ...] a few samples.
        base: the model that the layers belong to, where more of it than the layers has changed.

    No model, running statistic or generator of random numbers is changed.
    """
    names, found = list(new), dict[str, str]()
    if not names:
        return found
    with undisturbed():
        calls = recorded(original, {above for name in names for above in _ancestors(name)}, inputs)
        bench = _Bench(original if base is None else base, new, twins)
        for parent, layers in _parents(names, calls).items():
            found |= bench.differing(parent, [n for n in layers if n not in found], calls[parent])
    return found


class _Bench:
    """A copy of the model in which each layer is either the new one or its twin."""

    def __init__(self, base: nn.Module, new: Layers, twins: Layers) -> None:
        self._model = copy.deepcopy(base)
        self._new, self._twins = copy.deepcopy(dict(new)), copy.deepcopy(dict(twins))
        self._places = {n: places(self._model, n) for n in new}
        for layer in (self._model, *self._new.values(), *self._twins.values()):
            freeze(layer)  # scales are those of now: a pass in training mode would move them

    @cached_property
    def _moved(self) -> dict[str, nn.Module]:
        return {n: moved(twin, self._new[n]) for n, twin in self._twins.items()}

    def differing(self, parent: str, names: Sequence[str], calls: Calls) -> dict[str, str]:
        """The layers by whose presence the parent does otherwise: looked for together, then one by one."""
        if self._difference(parent, names, calls) is None:
            return {}
        alone = {name: self._difference(parent, [name], calls) for name in names}
        found = {name: reason for name, reason in alone.items() if reason is not None}
        rest = [name for name in names if name not in found]
        reason = self._difference(parent, rest, calls)
        return found if reason is None else found | dict.fromkeys(rest, f"together with others it {reason}")

    def _difference(self, parent: str, names: Collection[str], calls: Calls) -> str | None:
        """Why the parent with these layers does not do what it does with their twins; None where it does."""
        where = f"'{parent}'" if parent else "the model"
        for each in PASSES if names else ():
            given = calls[each.name]
            try:
                dense = next(self._answers(parent, self._twins, given, each))
                mixed = self._twins | {n: self._new[n] for n in names}
                for answers in list(self._answers(parent, mixed, given, each)):
                    excess = _excess(answers, dense, partial(self._moved_answers, parent, given, each))
                    if excess is not None:
                        return f"makes {where} answer otherwise in {each.name} than the dense layer would: {excess}"
            except Exception as error:  # a parent may be the user's own code, which raises what it likes
                text = str(error).partition("\n")[0]
                return f"breaks {where} in {each.name}: {type(error).__name__}: {text}"
        return None

    def _moved_answers(self, parent: str, calls: Sequence[Call], each: Pass) -> list[Any]:
        return next(self._answers(parent, self._moved, calls, each))

    def _answers(self, parent: str, layers: Layers, calls: Sequence[Call], each: Pass) -> Iterator[list[Any]]:
        """What the parent says to every call, in one context of the pass after the other."""
        for name, found in self._places.items():
            for holder, key in found:
                holder._modules[key] = layers[name]
        module = self._model.get_submodule(parent).train(each.training)
        for gradients in each.gradients:
            before = [(buffer, buffer.clone()) for buffer in module.buffers()]
            with gradients(), seeded():
                answers = [_detached(call.repeated(module)) for call in calls]
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
            yield answers


def _excess(answers: list[Any], dense: list[Any], moved: Callable[[], list[Any]]) -> str | None:
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
    return float(torch.where(a == b, 0.0, a.double() - b.double()).norm())


def _norm(a: Tensor) -> float:
    return float(torch.where(a.isfinite(), a.double(), 0.0).norm())


def _parents(names: Sequence[str], calls: Mapping[str, Any]) -> dict[str, list[str]]:
    """The nearest module around each layer that is called at all (a list of modules is not); and all in the model."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(next(a for a in _ancestors(name) if a in calls), []).append(name)
    return {**{p: layers for p, layers in found.items() if p}, "": list(names)}


def _ancestors(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition(".")[0]
        yield name


def _detached(values: Any) -> Any:
    return pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, values)
