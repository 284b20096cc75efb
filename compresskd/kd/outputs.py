"""The teacher's side of what a distillation term sees."""

from compresskd.tasks import ModelOutputs


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
