"""Score a model on one split."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd.data.base import Split
from compresskd.distributed import active
from compresskd.distributed.sharding import is_sharded
from compresskd.metric import ACCURACY, LOSS
from compresskd.progress import told
from compresskd.tasks import Batch, Classification, Judged, Task
from compresskd.tt import constant_weights


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
    note: Callable[[str], None] = lambda _: None,
) -> Scores:
    """Score `model` on all of `split`, without augmentation and without gradients.

    The model computes in the dtype of its own parameters, as it does for whoever loads it: autocast, around this
    call too, would give figures that nobody else gets. The model and the split are on one device already. The modes
    of the modules are put back afterwards. Several processes take turns by batches, and have the same result.

    Args:
        task: what the model is asked; None for classification.
        note: told how far it is, now and then.
    """
    task = Classification() if task is None else task
    sums, losses, predictions, targets, samples, logits = [], [], [], [], [], []
    # what is rounded as it is read is rounded once for the whole split, and what is folded is compared once
    plain = torch.autocast(split.device.type, enabled=False)
    with evaluation_mode(model), torch.inference_mode(), plain, parametrize.cached(), constant_weights():
        count = split.num_batches(batch_size, training=False)
        batches = told(split.every_sample(batch_size), count, f"{split.name} split, batches", note)
        # parts of a model come together where all processes call it
        for batch, is_own in active().rounds(batches, even=is_sharded(model)):
            output = batch.call(model)
            if not is_own:
                continue
            rows, targets_N = task.rows(output, batch)
            logits_NK = rows.logits.float()
            losses_N = task.label_losses(logits_NK, targets_N) if task.keeps_losses else None
            sums.append(task.label_sum(logits_NK, targets_N) if losses_N is None else losses_N.sum())
            predictions.append(task.keep(logits_NK, targets_N))
            targets.append(task.judged_by(targets_N))
            losses.append(losses_N)
            samples.append(batch.index if rows.sample is None else batch.index[rows.sample])
            logits.append(logits_NK if with_logits else None)
    # Transfers only at the end: nothing above waits for the device.
    columns = [_on_cpu(each) for each in (samples, predictions, targets, losses, logits)]
    totals = torch.stack(sums).tolist() if sums else []
    parts = active().in_order([*zip(totals, *columns, strict=True)])
    totals, *columns = zip(*parts, strict=True)
    samples_N, *others = map(_joined, columns)
    assert samples_N is not None  # of a split with samples
    order = samples_N.argsort(stable=True)
    predictions_N, targets_N, losses_N, logits_NK = (None if x is None else x[order] for x in others)
    assert predictions_N is not None
    assert targets_N is not None
    judged = Judged(
        predictions=predictions_N,
        targets=targets_N,
        losses=torch.empty(0) if losses_N is None else losses_N,
        sample=None if task.rows_are_samples else samples_N[order],
        num_samples=len(split),
        loss=sum(totals) / max(1, len(targets_N)),
        num_bytes=split.num_bytes,
    )
    return Scores(
        {**task.metrics_of(judged), LOSS.name: judged.loss},
        judged.predictions,
        judged.targets,
        task.scores(judged),
        task,
        logits_NK,
    )


def of_every_sample(rows_of: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> Tensor:
    """[S, ...]: what `rows_of` gives for the samples [B, ...] of each batch, in the order of the split.

    Args:
        batches: of a pass over every sample. Several processes take turns by them, and have the same result.
    """
    own = [(rows_of(batch), batch.index) for batch in active().turns(batches)]
    rows, index = (torch.cat(active().in_order([pair[part] for pair in own])) for part in (0, 1))
    return rows[index.argsort()]


def _on_cpu(parts: list[Tensor | None]) -> list[Tensor | None]:
    """The same on the CPU, by one transfer."""
    there = [part for part in parts if part is not None]
    return [*torch.cat(there).cpu().split([len(part) for part in there])] if there else parts


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
