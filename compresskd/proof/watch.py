"""What modules are given and what they say while their model runs."""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Given = dict[str, list[Any]]  # by the name of a module, the arguments of each of its calls
_UNCHANGING = (str, bytes, bool, int, float, complex, torch.dtype, torch.device)
Seen = list[tuple[str, Any]]  # where, and tensors among other values


class Watch:
    """Looks at the named modules, and gives each what it was `given` in a run before, where that is of the same form.

    Attributes:
        given: what reached each of the modules that are called at all.
        seen: what reached them, what they answered, and what they left in their arguments, in the order of the run.
    """

    def __init__(self, names: Collection[str], given: Mapping[str, list[Any]] | None = None) -> None:
        self._names, self._before = names, given or {}
        self._running = [""]
        self.given: Given = {}
        self.seen: Seen = []

    @property
    def where(self) -> str:
        """The innermost of the modules that is running, as it is told."""
        return f"'{self._running[-1]}'" if self._running[-1] else "the model"

    @contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        """Look on while this model runs."""
        handles = []
        for name in self._names:
            module = model.get_submodule(name)
            handles += [
                module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True),
                module.register_forward_hook(self._leave, with_kwargs=True),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        came, calls = fresh((args, kwargs)), self.given.setdefault(name, [])
        self.seen.append((self.where, came))
        self._running.append(name)
        before = self._before.get(name, [])[len(calls) : len(calls) + 1]
        calls.append(came)
        return fresh(before[0]) if before and _form(before[0]) == _form(came) else None

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.seen.append((self.where, fresh((args, kwargs, output))))
        self._running.pop()


def fresh(values: Any) -> Any:
    """The same with every tensor copied, and every object that may change (the cache of a decoder holds tensors)."""
    return pytree.tree_map(_copied, values)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or isinstance(value, _UNCHANGING) or callable(value):
        return value
    written = _Pickler(stream := io.BytesIO())
    try:
        written.dump(value)
        stream.seek(0)
        return _Unpickler(stream, written.kept).load()
    except Exception:  # an object may be of a kind that nobody copies; then it is the same for all runs
        return value


class _Pickler(pickle.Pickler):
    """Leaves tensors and modules out, of which pickle or `copy.deepcopy` would copy too much, or nothing."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.kept: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor | nn.Module):
            return None
        self.kept.append(obj)
        return len(self.kept) - 1


class _Unpickler(pickle.Unpickler):
    """Puts copies of the tensors in again, and the very modules."""

    def __init__(self, stream: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(stream)
        self._kept = kept

    def persistent_load(self, pid: Any) -> Any:
        kept = self._kept[pid]
        return kept.detach().clone() if isinstance(kept, Tensor) else kept


def _form(values: Any) -> Any:
    leaves, spec = pytree.tree_flatten(values)
    return spec, [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]
