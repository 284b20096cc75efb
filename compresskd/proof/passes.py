"""How a model is run for a proof: which passes, with the same random numbers, and what modules are called with."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

MAX_CALLS = 2  # of one module in a pass that are looked at


@dataclass(frozen=True)
class Pass:
    """A way to run a model: `gradients` are the contexts of torch under which it runs, one after the other."""

    name: str
    training: bool
    gradients: tuple[Callable[[], Any], ...]


# a layer that keeps something from one evaluation must answer right in the next one, in either context
EVALUATION = Pass("evaluation", False, (torch.no_grad, torch.inference_mode))
TRAINING = Pass("training", True, (torch.enable_grad,))
PASSES = (EVALUATION, TRAINING)


@dataclass(frozen=True)
class Call:
    """What a module was called with, copied."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def repeated(self, module: nn.Module) -> Any:
        """What the module answers; it may write into what it is given."""
        return module(*fresh(self.args), **fresh(self.kwargs))


Calls = dict[str, list[Call]]  # by the name of the pass


def recorded(model: nn.Module, names: Collection[str], inputs: Tensor) -> dict[str, Calls]:
    """By name, what those of the named modules that are called at all are called with while the model runs."""
    running = copy.deepcopy(model)
    calls: dict[str, Calls] = {}
    current = EVALUATION

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str) -> None:
        seen = calls.setdefault(name, {each.name: [] for each in PASSES})[current.name]
        if len(seen) < MAX_CALLS:
            seen.append(Call(fresh(args), fresh(kwargs)))

    for name in names:
        running.get_submodule(name).register_forward_pre_hook(partial(hook, name=name), with_kwargs=True)
    for current in PASSES:
        with torch.no_grad(), seeded():
            running.train(current.training)(inputs)
    return calls


def fresh(values: Any) -> Any:
    """The same with every tensor copied."""
    return pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, values)


def places(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Where the module of this name hangs: a shared one in several places."""
    module = model.get_submodule(name)
    return [(h, key) for h in model.modules() for key, child in h._modules.items() if child is module]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Afterwards the generators of random numbers stand where they stood."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers each time: dropout falls alike on both sides."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes milliseconds where there is no device
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    yield
