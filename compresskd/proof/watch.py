"""What modules are given and what they say while their model runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

Given = dict[str, list[Any]]  # by the name of a module, the arguments of each of its calls
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
    """The same with every tensor copied."""
    return pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, values)


def _form(values: Any) -> Any:
    leaves, spec = pytree.tree_flatten(values)
    return spec, [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]
