"""What the loop tells while it runs and when it ends: small frozen values, no formatting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compresskd.metric import Metric


@dataclass(frozen=True)
class StepProgress:
    """Where training stands within an epoch; `epoch` counts from 0, `step` is the number of steps done, of `steps` of
    the epoch, or of its part that a training of so many updates has.

    `unit` is what stands in the place of an epoch, where a training goes through parts of a model.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float  # running mean of this epoch
    metrics: Mapping[str, float]  # running means of this epoch, by name
    samples_per_second: float
    unit: str = "epoch"


@dataclass(frozen=True)
class EpochRecord:
    """What lies between two validations, usually an epoch; `row` is its line of `metrics.jsonl`."""

    epoch: int  # counts validations from 0, which are one an epoch unless `validate_every` says otherwise
    updates: int  # of the optimizer, in all
    train: Mapping[
        str, float
    ]  # `loss`, mean over the rows of what was minimized, and the task's running metric
    terms: Mapping[str, float]  # mean of each named term, unweighted
    validation: Mapping[str, float]  # `loss` of the labels alone, and every metric of the task
    lr: float  # of the epoch's last step, of the first parameter group
    seconds: float  # training and validation
    samples_per_second: float  # training alone

    def row(self) -> dict[str, Any]:
        """Flat values: `train_loss`, `validation_accuracy`."""
        flat: dict[str, Any] = {"epoch": self.epoch, "updates": self.updates}
        for split in ("train", "validation"):
            flat |= {f"{split}_{name}": value for name, value in getattr(self, split).items()}
        return flat | {
            "terms": dict(self.terms),
            "lr": self.lr,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "EpochRecord":
        """The record whose `row` that was."""

        def of(split: str) -> dict[str, float]:
            return {key[len(split) + 1 :]: v for key, v in row.items() if key.startswith(f"{split}_")}

        rest = {key: row[key] for key in ("epoch", "terms", "lr", "seconds", "samples_per_second")}
        return cls(updates=row.get("updates", 0), train=of("train"), validation=of("validation"), **rest)


@dataclass(frozen=True)
class FitResult:
    """What a training came to. The model holds the weights of `best_epoch` when this is returned."""

    history: tuple[EpochRecord, ...]
    best_epoch: int | None  # of the history, whose weights are kept; None where none was trained (epochs=0)
    validation: Mapping[str, float]  # of that epoch: `loss` and every metric
    seconds: float  # of all epochs, those before a resume included
    stopped_early: bool  # by `patience`


def better(monitor: Metric, value: float, loss: float, best: float, best_loss: float) -> bool:
    """Tell whether an epoch beats the best so far: a better value of `monitor`, on a tie a lower loss."""
    return monitor.better(value, best) or (value == best and loss < best_loss)
