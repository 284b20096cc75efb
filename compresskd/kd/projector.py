"""From the student's channels to the teacher's."""

from torch import Tensor, nn


def channels(feature: Tensor) -> int:
    """C of ``[B, C]``, ``[B, N, C]`` or ``[B, C, H, W]``."""
    return feature.shape[1] if feature.ndim == 4 else feature.shape[-1]


def projector(student: Tensor, teacher: Tensor) -> nn.Module | None:
    """A 1x1 convolution for ``[B, C, H, W]``, a linear layer else; None where the channels are equal.

    The regressor of FitNets (Romero et al. 2015, arXiv:1412.6550, section 2.2), without its spatial extent.

    Args:
        student: a feature of the student, whose device the projector takes.
        teacher: the feature it is compared with.
    """
    ours, theirs = channels(student), channels(teacher)
    if ours == theirs:
        return None
    module = nn.Conv2d(ours, theirs, 1) if student.ndim == 4 else nn.Linear(ours, theirs)
    return module.to(student.device)
