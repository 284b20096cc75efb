"""Running means of an epoch, without waiting for the device at every step."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compresskd.training.loss import LossOutput

# How many steps of values may lie on a GPU before they are fetched and checked. On the CPU it costs nothing.
ROWS_PER_FETCH = 50


class Meter:
    """Sums over an epoch of the loss, its terms and the correct predictions.

    Every step leaves one row of values on the device; `fetch` brings the waiting rows over in one transfer
    and adds them one after the other in float64, so that the sums do not depend on when they were fetched.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows_per_fetch = 1 if device.type == "cpu" else ROWS_PER_FETCH
        self.names: list[str] = []
        self.sums: list[float] = []  # loss, the terms, correct predictions
        self.samples = 0
        self.steps = 0
        self.lr = 0.0
        self.first_bad: tuple[int, float, dict[str, float]] | None = None  # step, learning rate, its values
        self._rows: list[Tensor] = []
        self._waiting: list[tuple[int, float]] = []  # samples and learning rate of each row

    @torch.no_grad()
    def add(self, output: LossOutput, targets: Tensor, lr: float) -> None:
        """Take the values of one step; targets: [B] classes, or [B, K] weights (the heaviest counts)."""
        if not self.sums:
            self.names = list(output.terms)
            self.sums = [0.0] * (len(self.names) + 2)
        classes_B = targets if targets.ndim == 1 else targets.argmax(dim=1)
        correct = (output.logits.argmax(dim=1) == classes_B).sum()
        self._rows.append(torch.stack([output.total, *(output.terms[name] for name in self.names), correct]))
        self._waiting.append((len(targets), lr))
        if len(self._rows) >= self.rows_per_fetch:
            self.fetch()

    def fetch(self) -> None:
        """Add the waiting rows to the sums; note the first step whose loss or terms were not finite."""
        if not self._rows:
            return
        rows = torch.stack(self._rows).tolist()
        for row, (samples, lr) in zip(rows, self._waiting, strict=True):
            *losses, correct = row
            if self.first_bad is None and not all(map(math.isfinite, losses)):
                self.first_bad = self.steps, lr, dict(zip(["loss", *self.names], losses, strict=True))
            for index, value in enumerate(losses):
                self.sums[index] += value * samples
            self.sums[-1] += correct
            self.samples += samples
            self.steps += 1
            self.lr = lr
        self._rows, self._waiting = [], []

    @property
    def loss(self) -> float:
        """Mean over the samples fetched so far."""
        return self.sums[0] / self.samples

    @property
    def accuracy(self) -> float:
        """Fraction of the samples fetched so far."""
        return self.sums[-1] / self.samples

    @property
    def terms(self) -> dict[str, float]:
        """Mean of each term over the samples fetched so far."""
        return {name: total / self.samples for name, total in zip(self.names, self.sums[1:-1], strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; call `fetch` before."""
        return {
            "names": list(self.names),
            "sums": list(self.sums),
            "samples": self.samples,
            "steps": self.steps,
            "lr": self.lr,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.names, self.sums = list(state["names"]), list(state["sums"])
        self.samples, self.steps, self.lr = state["samples"], state["steps"], state["lr"]
