"""Mixup: convex combinations of samples and of their labels."""

import dataclasses
import random

import torch.nn.functional as F
from torch import Tensor

from compresskd.tasks import Batch


def mixing_weight(alpha: float, *, seed: int, epoch: int, step: int) -> float:
    """Draw lambda ~ Beta(alpha, alpha), a pure function of the arguments, for a resumed epoch draws again."""
    return random.Random(f"mixup {seed} {epoch} {step}").betavariate(alpha, alpha)


def mixup(batch: Batch, weight: float, num_classes: int) -> Batch:
    """Mix each sample with another of its batch: x = weight x_i + (1 - weight) x_j, and the labels likewise.

    The partner of sample i is sample B - 1 - i: the batch is in random order already. The result has float
    targets [B, K] and `view` -1, for such a sample never comes again (cached teacher outputs would be wrong).
    Zhang, Cisse, Dauphin & Lopez-Paz 2018, 'mixup: Beyond Empirical Risk Minimization', eq. 1.
    """
    assert isinstance(batch.inputs, Tensor)  # others are refused beforehand
    inputs = batch.inputs.flip(0).lerp_(batch.inputs, weight)
    labels_BK = F.one_hot(batch.targets, num_classes).to(inputs.dtype)
    targets_BK = labels_BK.flip(0).lerp_(labels_BK, weight)
    return dataclasses.replace(batch, inputs=inputs, targets=targets_BK, view=-1)
