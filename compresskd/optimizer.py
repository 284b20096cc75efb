"""Optimizers that leave torch's compiler out of a process that compiles nothing.

torch.optim calls into `torch._dynamo` to keep some methods from being traced, and so loads it at the first optimizer:
over a second, and 60 MB. It can trace nothing before something else has loaded it; until then the methods run as they
are written, and from then on as torch has them.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COMPILER = "torch._dynamo"
_UNTRACED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
_UNTRACED_FORM = "__dynamo_disable"  # where torch keeps what it made of such a method


def make_optimizer(
    factory: Callable[..., Optimizer], groups: Iterable[Tensor] | Iterable[dict[str, Any]]
) -> Optimizer:
    """The optimizer of these parameters, or groups of parameters; the compiler is not loaded for it."""
    _leave_compiler_out()
    return factory(groups)


@functools.cache
def _leave_compiler_out() -> None:
    for name in _UNTRACED:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, _UNTRACED_FORM):
            setattr(method, _UNTRACED_FORM, _untraced(method))
    for kind in _kinds(Optimizer):
        step = vars(kind).get("step")
        if getattr(getattr(step, "__code__", None), "co_name", "") == "_use_grad":
            kind.step = _step(step)  # pyright: ignore[reportAttributeAccessIssue]


def _untraced(method: Callable[..., Any]) -> Callable[..., Any]:
    """In place of what `torch._dynamo.disable` makes of the method; gives way to it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return method(*args, **kwargs)
        form = torch._dynamo.disable(method, wrapping=False)  # as torch._compile does it
        setattr(method, _UNTRACED_FORM, form)
        return form(*args, **kwargs)

    return call


def _step(step: Any) -> Any:
    """A `step` as `torch.optim.optimizer._use_grad_for_differentiable` makes it, but for the break of a graph."""
    written = step.__wrapped__

    @functools.wraps(step)
    def call(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules:
            return step(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return written(self, *args, **kwargs)

    return call


def _kinds(kind: type[Optimizer]) -> Iterator[type[Optimizer]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)
