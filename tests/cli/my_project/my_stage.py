"""Set the smallest weights of every linear layer to zero."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn


@dataclass(frozen=True)
class Prune:
    fraction: float = 0.5
    needs_teacher: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 <= self.fraction < 1:
            raise ValueError(f"fraction: got {self.fraction}, expected >= 0 and < 1")

    def __call__(self, state, context):
        student = deepcopy(state.student)
        with torch.no_grad():
            for module in student.modules():
                if isinstance(module, nn.Linear):
                    size = module.weight.abs()
                    module.weight[size < size.quantile(self.fraction)] = 0
        context.details["fraction_of_zeros"] = self.fraction  # goes into the stage's entry of record.json
        return replace(state, student=student)
