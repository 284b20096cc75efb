"""Score a model on one split."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd.data.base import Split
from compresskd.metric import ACCURACY, LOSS
from compresskd.tasks import Classification, Judged, Task


@dataclass(frozen=True)
class Scores:
    """How a model did on a split of S samples, N rows (samples, or tokens of them)."""

    values: Mapping[
        str, float
    ]  # the metrics of the task by name, and `loss`: of the labels, no smoothing, no weights
    predictions: Tensor  # [N, ...] on the CPU, in the order of the split: what the task keeps of a row
    targets: Tensor  # [N, ...] on the CPU
    of_samples: Tensor  # [S] float32, a score of each sample, higher is better
    task: Task
    logits: Tensor | None = None  # [N, K] float32 on the CPU, where asked for

    @property
    def loss(self) -> float:
        """The mean over rows of the label loss."""
        return self.values[LOSS.name]

    @property
    def accuracy(self) -> float:
        """Fraction 0..1. Raises KeyError where the task has no accuracy."""
        return self.values[ACCURACY.name]

    @property
    def monitored(self) -> float:
        """The metric by which the task selects."""
        return self.values[self.task.monitor.name]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode; afterwards every module, frozen or not, has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    model: nn.Module,
    split: Split,
    task: Task | None = None,
    *,
    batch_size: int,
    with_logits: bool = False,
) -> Scores:
    """Score `model` on all of `split`, in order, without augmentation and without gradients.

    The model computes in the dtype of its own parameters, as it does for whoever loads it: autocast, around this
    call too, would give figures that nobody else gets. The model and the split are on one device already. The modes
    of the modules are put back afterwards.

    Args:
        task: what the model is asked; None for classification.
    """
    task = Classification() if task is None else task
    sums, losses, predictions, targets, samples, logits = [], [], [], [], [], []
    # what is rounded as it is read is rounded once for the whole split
    plain = torch.autocast(split.device.type, enabled=False)
    with evaluation_mode(model), torch.inference_mode(), plain, parametrize.cached():
        for batch in split.batches(batch_size):
            rows, targets_N = task.rows(batch.call(model), batch)
            logits_NK = rows.logits.float()
            if task.keeps_losses:
                losses.append(task.label_losses(logits_NK, targets_N))
            sums.append(losses[-1].sum() if task.keeps_losses else task.label_sum(logits_NK, targets_N))
            predictions.append(task.keep(logits_NK, targets_N))
            targets.append(task.judged_by(targets_N))
            if rows.sample is not None:
                samples.append(batch.index[rows.sample])
            if with_logits:
                logits.append(logits_NK)
    # Transfers only at the end: nothing above waits for the device.
    targets_N = torch.cat(targets).cpu()
    judged = Judged(
        predictions=torch.cat(predictions).cpu(),
        targets=targets_N,
        losses=torch.cat(losses).cpu() if losses else torch.empty(0),
        sample=torch.cat(samples).cpu() if samples else None,
        num_samples=len(split),
        loss=sum(torch.stack(sums).tolist()) / max(1, len(targets_N)),
        num_bytes=split.num_bytes,
    )
    return Scores(
        {**task.metrics_of(judged), LOSS.name: judged.loss},
        judged.predictions,
        judged.targets,
        task.scores(judged),
        task,
        torch.cat(logits).cpu() if with_logits else None,
    )
