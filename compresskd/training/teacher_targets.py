"""Where a task's targets are what the teacher says: its outputs for the splits that models are judged by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from compresskd.data.base import Data, Split
from compresskd.tasks import logits_of
from compresskd.training.evaluation import evaluation_mode, of_every_sample


def with_targets_of(teacher: nn.Module, data: Data, *, batch_size: int) -> Data:
    """The data with the teacher's vectors [S, D] as the targets of validation and test; others as they are.

    They are rounded to half precision, in which a run keeps those of the test split.
    """
    if not data.task.targets_of_teacher:
        return data
    splits = (data.validation, data.test)
    validation, test = (_of_split(teacher, split, batch_size) for split in splits)
    return replace(data, validation=validation, test=test)


def _of_split(teacher: nn.Module, split: Split, batch_size: int) -> Split:
    with evaluation_mode(teacher), torch.inference_mode():
        vectors = of_every_sample(
            lambda batch: logits_of(batch.call(teacher)).half(), split.every_sample(batch_size)
        ).to(split.device)
    changed: Any = split
    return replace(changed, targets=vectors.float().clone())
