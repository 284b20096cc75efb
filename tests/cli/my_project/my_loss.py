"""The angle between the logits of student and teacher."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F


@dataclass(frozen=True)
class Cosine:
    weight: float = 1.0
    kind: ClassVar[str] = "logits"  # what is compared: "targets", "logits" or "features"

    def __call__(self, student, teacher, targets):
        return 1 - F.cosine_similarity(student.logits.float(), teacher.logits.float()).mean()
