"""Which parameters decay, and how their running average is kept."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Split the trainable parameters of `modules` into one group that decays and one that does not.

    No decay on tensors of one dimension or none (biases, the affine of norms, quantizer scales), nor on
    parameters marked `no_weight_decay = True`: an attribute of the parameter, or of the module that directly
    owns it (which, unlike the former, survives `copy.deepcopy`). Shared parameters are taken once. Groups
    without parameters are left out.
    Raises ValueError where nothing is trainable.
    """
    decay: dict[nn.Parameter, None] = {}
    no_decay: dict[nn.Parameter, None] = {}
    for root in modules:
        for module in root.modules():
            exempt = getattr(module, "no_weight_decay", False) is True
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad or parameter in decay or parameter in no_decay:
                    continue
                marked = exempt or getattr(parameter, "no_weight_decay", False) is True
                (no_decay if marked or parameter.ndim <= 1 else decay)[parameter] = None
    groups: list[dict[str, Any]] = []
    if decay:
        groups.append({"params": list(decay)})
    if no_decay:
        groups.append({"params": list(no_decay), "weight_decay": 0.0})
    if not groups:
        raise ValueError(
            "the model has no trainable parameter (requires_grad=True): there is nothing to train"
        )
    return groups


class Average:
    """Exponential moving average of parameters: a <- d a + (1 - d) w after each step.

    d = min(decay, (1 + t) / (10 + t)) at the t-th update (t = 1, 2, ...), so that a short training is not
    held at its initial weights. Buffers (batch statistics) are not averaged: they are the model's own.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.parameters: list[Tensor] = [p for p in parameters if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average toward the current weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        get_ema_multi_avg_fn(decay)(self.shadow, self.parameters, self.num_updates)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the model for as long as the block lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            current = parameter.clone()
            parameter.copy_(average)
            average.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """The average and its count; the tensors are the live ones."""
        return {"num_updates": self.num_updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.num_updates = state["num_updates"]
        shadow: list[Tensor] = state["shadow"]
        for mine, theirs in zip(self.shadow, shadow, strict=True):
            mine.copy_(theirs)
