"""Set the smallest weights of every linear layer to zero."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import nn


@dataclass(frozen=True)
class Prune:
    fraction: Annotated[float, Ge(0), Lt(1)] = 0.5  # judged before anything is trained
    needs_teacher: ClassVar[bool] = False

    def __call__(self, state, context):
        student = deepcopy(state.student)
        with torch.no_grad():
            for module in student.modules():
                if isinstance(module, nn.Linear):
                    size = module.weight.abs()
                    module.weight[size < size.quantile(self.fraction)] = 0
        context.details["fraction_of_zeros"] = self.fraction  # goes into the stage's entry of record.json
        return replace(state, student=student)
