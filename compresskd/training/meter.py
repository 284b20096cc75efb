"""Running means of an epoch, without waiting for the device at every step."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compresskd.tasks import Batch, Task
from compresskd.training.loss import LossOutput

# How many steps of values may lie on a GPU before they are fetched and checked. On the CPU it costs nothing.
ROWS_PER_FETCH = 50


class Meter:
    """Sums over an epoch of the loss, its terms and the running metric of the task, weighted by rows.

    Every step leaves one row of values on the device; `fetch` brings the waiting rows over in one transfer
    and adds them one after the other in float64, so that the sums do not depend on when they were fetched.
    """

    def __init__(self, device: torch.device, task: Task) -> None:
        self.task = task
        self.rows_per_fetch = 1 if device.type == "cpu" else ROWS_PER_FETCH
        self.names: list[str] = []
        self.sums: list[float] = []  # loss, the terms, the running metric
        self.rows = self.samples = 0
        self.steps = 0
        self.lr = 0.0
        self.first_bad: tuple[int, float, dict[str, float]] | None = None  # step, learning rate, its values
        self._steps: list[Tensor] = []
        self._waiting: list[tuple[int, int, float]] = []  # rows, samples and learning rate of each step

    @torch.no_grad()
    def add(self, output: LossOutput, batch: Batch, lr: float) -> None:
        """Take the values of one step."""
        if not self.sums:
            self.names = list(output.terms)
            self.sums = [0.0] * (len(self.names) + 2)
        targets = batch.targets if output.targets is None else output.targets
        running = output.total
        if self.task.running is not None:
            running = self.task.running_sum(output.logits, targets)
        self._steps.append(torch.stack([output.total, *(output.terms[name] for name in self.names), running]))
        self._waiting.append((len(targets), len(batch), lr))
        if len(self._steps) >= self.rows_per_fetch:
            self.fetch()

    def fetch(self) -> None:
        """Add the waiting rows to the sums; note the first step whose loss or terms were not finite."""
        if not self._steps:
            return
        rows = torch.stack(self._steps).tolist()
        for row, (rows_of_step, samples, lr) in zip(rows, self._waiting, strict=True):
            *losses, running = row
            if self.first_bad is None and not all(map(math.isfinite, losses)):
                self.first_bad = self.steps, lr, dict(zip(["loss", *self.names], losses, strict=True))
            for index, value in enumerate(losses):
                self.sums[index] += value * rows_of_step
            self.sums[-1] += running
            self.rows += rows_of_step
            self.samples += samples
            self.steps += 1
            self.lr = lr
        self._steps, self._waiting = [], []

    @property
    def loss(self) -> float:
        """Mean over the rows fetched so far."""
        return self.sums[0] / max(1, self.rows)

    @property
    def metrics(self) -> dict[str, float]:
        """The running metric by name: its mean over the rows fetched so far."""
        running = self.task.running
        return {} if running is None else {running.name: self.sums[-1] / max(1, self.rows)}

    @property
    def terms(self) -> dict[str, float]:
        """Mean of each term over the rows fetched so far."""
        return {
            name: total / max(1, self.rows) for name, total in zip(self.names, self.sums[1:-1], strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values; call `fetch` before."""
        return {
            "names": list(self.names),
            "sums": list(self.sums),
            "rows": self.rows,
            "samples": self.samples,
            "steps": self.steps,
            "lr": self.lr,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.names, self.sums = list(state["names"]), list(state["sums"])
        self.rows = state.get("rows", state["samples"])
        self.samples, self.steps, self.lr = state["samples"], state["steps"], state["lr"]
