"""How a model is run for a proof: which passes, with the same random numbers each time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Pass:
    """A way to run a model: in training mode or not, under `gradients`, a context of torch."""

    name: str
    training: bool
    gradients: Callable[[], Any]

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """The model in this mode, its dropout seeded; its buffers afterwards as they were."""
        buffers = list(model.train(self.training).buffers())
        before = [buffer.clone() for buffer in buffers]
        with self.gradients(), seeded():
            try:
                yield
            finally:
                with torch.no_grad():
                    for buffer, value in zip(buffers, before, strict=True):
                        buffer.copy_(value)


# what a model may keep from a pass in inference mode is of no use to one with gradients: training comes first
PASSES = (Pass("training", True, torch.enable_grad), Pass("evaluation", False, torch.inference_mode))
RECORDING = Pass("evaluation", False, torch.no_grad)


def sharing(modules: Any) -> Any:
    """A copy of modules that holds the very parameters of the original, and buffers of its own."""
    found = nn.ModuleList([modules] if isinstance(modules, nn.Module) else pytree.tree_leaves(modules))
    return copy.deepcopy(modules, {id(parameter): parameter for parameter in found.parameters()})


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
