"""What a loss closure returns, and the error for a loss that is no number."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from compresskd.tasks import Batch


class LossOutput(NamedTuple):
    """What a loss closure says of one batch. A plain tuple `(total, terms, logits)` does as well.

    total: scalar, the graph attached; the loop calls `backward` on it.
    terms: scalars without graph, by name, for the history (empty where there is nothing to tell apart).
    logits: [N, K] rows of the model being trained, for the training accuracy.
    targets: of these rows; None where they are those of the batch.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    logits: Tensor
    targets: Tensor | None = None


LossFunction = Callable[[nn.Module, Batch], LossOutput]


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite at `step` (within `epoch`; both count from 0; None: on validation)."""

    def __init__(
        self, epoch: int, step: int | None, lr: float, values: Mapping[str, float], cause: str
    ) -> None:
        self.epoch, self.step, self.lr, self.values, self.cause = epoch, step, lr, dict(values), cause
        # All of it as arguments: an exception is pickled by them on its way out of a worker process.
        super().__init__(epoch, step, lr, dict(values), cause)

    def __str__(self) -> str:
        where = "on validation" if self.step is None else f"step {self.step}"
        terms = ", ".join(n for n, value in self.values.items() if n != "loss" and not math.isfinite(value))
        values = ", ".join(f"{name} = {value:g}" for name, value in self.values.items())
        return (
            f"the loss is not finite{f' (first in {terms})' if terms else ''}: epoch {self.epoch}, {where} "
            f"(counted from 0), learning rate {self.lr:g}; {values}. {self.cause}"
        )


def likely_cause(*, first_step: bool, fp16: bool, clipped: bool) -> str:
    """What most often lies behind a loss that is not finite, and the config key to turn.

    first_step: no update had been made yet; clipped: gradients are clipped already.
    """
    if fp16:
        return "Likely a float16 overflow: write precision=bf16 or precision=fp32"
    if first_step:
        return (
            "No update had been made yet, so it is not the learning rate: look for values that are not "
            "finite in the inputs (data), in the initial weights, or in the loss itself"
        )
    clip = "" if clipped else "set train.gradient_clip=1.0, "
    return f"Likely the learning rate is too high: write a smaller optimizer.lr, {clip}or warm up"
