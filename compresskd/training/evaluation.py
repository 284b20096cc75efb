"""Accuracy, loss and predictions of a model on one split."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd.data.base import Split


@dataclass(frozen=True)
class Scores:
    """How a model did on a split of N samples."""

    accuracy: float  # fraction 0..1
    loss: float  # mean cross-entropy in nats, no label smoothing
    predictions: Tensor  # [N] int64 on the CPU, in the order of the split
    logits: Tensor | None = None  # [N, K] float32 on the CPU, where asked for


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
    *,
    batch_size: int,
    with_logits: bool = False,
) -> Scores:
    """Score `model` on all of `split`, in order, without augmentation and without gradients.

    The model computes in the dtype of its own parameters, as it does for whoever loads it: autocast, around this
    call too, would give figures that nobody else gets. The model and the split are on one device already. The modes
    of the modules are put back afterwards.
    """
    losses, predictions, logits = [], [], []
    # what is rounded as it is read is rounded once for the whole split
    plain = torch.autocast(split.device.type, enabled=False)
    with evaluation_mode(model), torch.inference_mode(), plain, parametrize.cached():
        for batch in split.batches(batch_size):
            logits_BK = model(batch.inputs).float()
            losses.append(F.cross_entropy(logits_BK, batch.targets, reduction="sum"))
            predictions.append(logits_BK.argmax(dim=1))
            if with_logits:
                logits.append(logits_BK)
    # Transfers only at the end: nothing above waits for the device.
    predictions_N = torch.cat(predictions).cpu()
    correct = (predictions_N == split.targets.cpu()).sum().item()
    return Scores(
        accuracy=correct / len(split),
        loss=sum(torch.stack(losses).tolist()) / len(split),
        predictions=predictions_N,
        logits=torch.cat(logits).cpu() if with_logits else None,
    )
