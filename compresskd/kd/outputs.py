"""What a model said of a batch: the only thing that a distillation term sees of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of one model for one batch.

    Args:
        logits: ``[B, K]``, any floating dtype.
        features: outputs of captured modules by fully qualified name, ``[B, C]``, ``[B, N, C]`` or
            ``[B, C, H, W]``; empty where no term asks for features.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


def teacher_of(teacher: ModelOutputs | None, term: object) -> ModelOutputs:
    """The teacher's view.

    Raises:
        ValueError: if it is missing.
    """
    if teacher is None:
        raise ValueError(
            f"{type(term).__name__} compares with a teacher: expected a ModelOutputs of it, got None"
        )
    return teacher
