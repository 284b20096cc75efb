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
        self.sums: list[float] = [0.0, 0.0]  # loss, the terms, the running metric
        self.counts: list[int] = [0, 0]  # the rows that each of them is of: not every row has a label
        self.samples = self.steps = 0
        self.lr = 0.0
        self.first_bad: tuple[int, float, dict[str, float]] | None = None  # step, learning rate, its values
        self._steps: list[Tensor] = []
        self._waiting: list[
            tuple[list[str], int, int, float]
        ] = []  # terms, rows, samples, learning rate of each

    def add(self, output: LossOutput, batch: Batch, lr: float) -> None:
        """Take the values of one step."""
        self.take(self.values(output, batch), list(output.terms), _num_rows(output, batch), len(batch), lr)

    @torch.no_grad()
    def values(self, output: LossOutput, batch: Batch) -> Tensor:
        """Of a batch: the loss, the terms, the running sum, on the device."""
        targets = batch.targets if output.targets is None else output.targets
        runs = self.task.running is not None and batch.labelled
        running = [self.task.running_sum(output.logits, targets)] if runs else []
        return torch.stack([output.total, *output.terms.values(), *running])

    @torch.no_grad()
    def part_of_values(self, output: LossOutput, batch: Batch, copies: int) -> Tensor:
        """What this process has of the values of a batch that several share, and of the number of its rows last.

        copies: how many processes have the same.
        """
        values = self.values(output, batch)
        return torch.cat([values, values.new_tensor([_num_rows(output, batch)])]).float() / copies

    def take(self, values: Tensor, names: list[str], rows: int, samples: int, lr: float) -> None:
        """Take the values of a step, with terms of these names."""
        self._steps.append(values)
        self._waiting.append((names, rows, samples, lr))
        if len(self._steps) >= self.rows_per_fetch:
            self.fetch()

    def fetch(self) -> None:
        """Add the waiting rows to the sums; note the first step whose loss or terms were not finite."""
        if not self._steps:
            return
        fetched = torch.cat(self._steps).tolist()
        for step, (names, rows, samples, lr) in zip(self._steps, self._waiting, strict=True):
            values, fetched = fetched[: len(step)], fetched[len(step) :]
            losses, running = values[: 1 + len(names)], values[1 + len(names) :]
            if self.first_bad is None and not all(map(math.isfinite, losses)):
                self.first_bad = self.steps, lr, dict(zip(["loss", *names], losses, strict=True))
            self._add(0, losses[0] * rows, rows)
            for name, value in zip(names, losses[1:], strict=True):
                self._add(self._place(name), value * rows, rows)
            for total in running:
                self._add(-1, total, rows)
            self.samples += samples
            self.steps += 1
            self.lr = lr
        self._steps, self._waiting = [], []

    def _place(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
            self.sums.insert(-1, 0.0)
            self.counts.insert(-1, 0)
        return 1 + self.names.index(name)

    def _add(self, place: int, total: float, rows: int) -> None:
        self.sums[place] += total
        self.counts[place] += rows

    def _mean(self, place: int) -> float:
        return self.sums[place] / max(1, self.counts[place])

    @property
    def loss(self) -> float:
        """Mean over the rows fetched so far."""
        return self._mean(0)

    @property
    def metrics(self) -> dict[str, float]:
        """The running metric by name: its mean over the rows with labels that were fetched so far."""
        running = self.task.running
        return {} if running is None else {running.name: self._mean(-1)}

    @property
    def terms(self) -> dict[str, float]:
        """Mean of each term over the rows that it was computed of, fetched so far."""
        return {name: self._mean(place) for place, name in enumerate(self.names, 1)}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; call `fetch` before."""
        return {
            "names": list(self.names),
            "sums": list(self.sums),
            "counts": list(self.counts),
            "samples": self.samples,
            "steps": self.steps,
            "lr": self.lr,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.names, self.sums = list(state["names"]), list(state["sums"]) or [0.0, 0.0]
        # before there were samples without labels, all was of all rows
        self.counts = list(state.get("counts", [state.get("rows", state["samples"])] * len(self.sums)))
        self.samples, self.steps, self.lr = state["samples"], state["steps"], state["lr"]


def _num_rows(output: LossOutput, batch: Batch) -> int:
    return len(batch.targets if output.targets is None else output.targets)
