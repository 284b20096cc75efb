"""What the loop tells while it runs and when it ends: small frozen values, no formatting."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StepProgress:
    """Where training stands within an epoch; `epoch` counts from 0, `step` is the number of steps done."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float  # running mean of this epoch
    accuracy: float  # running mean of this epoch, fraction 0..1
    samples_per_second: float


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.jsonl`; accuracies are fractions 0..1."""

    epoch: int
    train_loss: float  # mean over the samples of what was minimized
    train_accuracy: float
    terms: Mapping[str, float]  # mean of each named term, unweighted
    validation_loss: float  # mean cross-entropy
    validation_accuracy: float
    lr: float  # of the epoch's last step, of the first parameter group
    seconds: float  # training and validation
    samples_per_second: float  # training alone


@dataclass(frozen=True)
class FitResult:
    """What a training came to. The model holds the weights of `best_epoch` when this is returned."""

    history: tuple[EpochRecord, ...]
    best_epoch: int | None  # None where no epoch was trained (epochs=0)
    best_validation_accuracy: float
    best_validation_loss: float
    seconds: float  # of all epochs, those before a resume included
    stopped_early: bool  # by `patience`


def better(accuracy: float, loss: float, best_accuracy: float, best_loss: float) -> bool:
    """Tell whether an epoch beats the best so far: higher validation accuracy, on a tie lower loss."""
    return (accuracy, -loss) > (best_accuracy, -best_loss)
